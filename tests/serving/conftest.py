"""A server on a free port of this machine, with a tiny model and two adapters."""

import asyncio
import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from crome.model.configuration import new_adapter
from crome.serving.adapters import Adapters
from crome.serving.engine.local import LocalEngine
from crome.serving.service import Service


@pytest.fixture
def save_adapters(randomise, tmp_path):
    """Writes adapters that differ and returns the folder of each by name."""

    def save(pair, names):
        folders = {}
        for name in names:
            adapter = new_adapter(pair.model.config)
            randomise(adapter)
            pair.model.task_adapters["written"] = adapter.eval()
            pair.model.set_adapter("written")
            folders[name] = tmp_path / "adapters" / name
            pair.model.save_adapter(folders[name], metrics={"accuracy": 0.5})
            pair.model.set_adapter(None)
            del pair.model.task_adapters["written"]
        return folders

    return save


@pytest.fixture
def serving(build, save_adapters):
    """Serves a pair while the block runs; yields its address and its parts."""
    import uvicorn  # here, so that tests of the engine alone do without the extra `serve`

    from crome.serving.http.app import create_app
    from crome.serving.http.gate import Keys
    from crome.serving.http.run import Server, settings

    @contextmanager
    def serve(
        pair=None, *, keys=None, engine=None, make=LocalEngine, limits=None, gate=None,
        fetcher=None, app=None, **more
    ):  # fmt: skip
        pair = pair or build()
        folders = save_adapters(pair, ("red", "blue"))
        running = make(pair.model, pair.processor, **engine or {})
        adapters = Adapters(running, "tiny", [folders["red"].parent])
        for name, folder in folders.items():
            adapters.add(name, folder)
        service = Service(running, pair.processor, adapters, limits=limits, fetcher=fetcher)
        app = create_app(service, keys or Keys(), **app or {}, **gate or {})
        config = uvicorn.Config(app, port=0, **settings(drain=10) | {"log_level": "error"} | more)
        server = Server(config, service)
        thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
        thread.start()
        try:
            deadline = time.monotonic() + 60
            while not server.started and thread.is_alive() and time.monotonic() < deadline:
                time.sleep(0.01)
            assert server.started, "the server did not start"
            port = server.servers[0].sockets[0].getsockname()[1]
            yield SimpleNamespace(
                url=f"http://127.0.0.1:{port}", port=port, pair=pair, service=service,
                adapters=adapters, server=server, thread=thread, folders=folders,
            )  # fmt: skip
        finally:
            server.should_exit = True
            thread.join(30)
        assert not thread.is_alive(), "the server did not stop"

    return serve
