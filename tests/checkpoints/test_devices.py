"""Where a model is put: names of devices, what is moved and what stays, and what is refused."""

from pathlib import Path

import pytest
import torch

from crome.checkpoints import devices
from crome.checkpoints.devices import device_named
from crome.checkpoints.holding import Holding, layers
from crome.checkpoints.loading import load, to_device, tower_kwargs
from crome.errors import InputError
from crome.evaluation.evaluate import evaluate
from crome.features.verbs import build as cache_build
from crome.features.verbs import verify as cache_verify
from crome.interop.export import export
from crome.quickstart import quickstart
from crome.serving.ask import ask
from crome.serving.serve import serve
from crome.studies.ablate import ablate
from crome.studies.gate import gate
from crome.studies.retention import retention
from crome.studies.succession import succession
from crome.training.arguments import keywords, start_processes
from crome.training.plan import plan
from crome.training.settings import Optimization, RunSettings
from crome.training.train import train

META = torch.device("meta")
ABSENT = r"--device cuda: PyTorch finds no GPU of CUDA here"


@pytest.fixture
def two_gpus(monkeypatch):
    """A machine that says it has two GPUs of CUDA; nothing may be computed on them."""
    monkeypatch.setattr(devices.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(devices.torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)


@pytest.fixture
def no_gpu(monkeypatch):
    """A machine without any."""
    monkeypatch.setattr(devices.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(devices.torch.backends.mps, "is_available", lambda: False)


def test_names_on_a_machine_with_gpus(two_gpus, monkeypatch):
    named = {name: str(device_named(name)) for name in ("auto", "cpu", "cuda", "cuda:1")}
    assert named == {"auto": "cuda:0", "cpu": "cpu", "cuda": "cuda:0", "cuda:1": "cuda:1"}
    with pytest.raises(InputError, match=r"cuda:2: there are 2 GPUs here"):
        device_named("cuda:2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert str(device_named("auto")) == str(device_named("cuda")) == "cuda:1"
    with pytest.raises(InputError, match="would put several processes on one GPU"):
        device_named("cuda:0")


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:-1", "cuda:x", "CPU", "", "meta", "cpu:0"])
def test_other_names_are_refused(name):
    with pytest.raises(InputError, match=r"expected auto, cpu, cuda, cuda:N or mps"):
        device_named(name)


def test_what_a_machine_lacks_is_refused(no_gpu):
    assert device_named("auto") == torch.device("cpu")
    with pytest.raises(InputError, match=ABSENT):
        device_named("cuda:1")
    with pytest.raises(InputError, match="no GPU of Apple's"):
        device_named("mps")


@pytest.mark.parametrize("verb", [
    lambda out: evaluate(out, data=Path("absent.jsonl"), device="cuda"),
    lambda _: ask("What?", checkpoint="absent", device="cuda"),
    lambda _: serve("absent", device="cuda"),
    lambda out: export(out, "absent", to="hub", device="cuda"),
    lambda _: cache_build(Path("absent.jsonl"), device="cuda"),
    lambda _: cache_verify(Path("absent.jsonl"), device="cuda"),
    lambda out: train(out, data=Path("absent.jsonl"), device="cuda"),
    lambda out: ablate(out, device="cuda"),
    lambda out: retention(out, data=Path("absent.jsonl"), device="cuda"),
    lambda out: succession(out, device="cuda"),
    lambda out: gate(out / "adapter", out, device="cuda"),
    lambda out: quickstart(out, device="cuda"),
    lambda _: plan(data=Path("absent.jsonl"), device="cuda"),
])  # fmt: skip
def test_verbs_refuse_an_absent_device_before_anything_else(no_gpu, verb, tmp_path):
    with pytest.raises(InputError, match=ABSENT):
        verb(tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("holding", [Holding(shard=True), Holding(activation_checkpointing=True)])
@pytest.mark.parametrize("verb", [
    lambda out, held: evaluate(out, data=Path("absent.jsonl"), holding=held),
    lambda _, held: ask("What?", holding=held),
    lambda _, held: serve("absent", holding=held),
    lambda out, held: export(out, "absent", holding=held),
])  # fmt: skip
def test_verbs_that_answer_refuse_what_belongs_to_training(verb, holding, tmp_path):
    with pytest.raises(InputError, match=r"--holding\.\w+ belongs to `crome train`"):
        verb(tmp_path / "out", holding)


@pytest.mark.parametrize(
    "given", [{"holding": Holding(device_map="auto")}, {"decoding": "recorded"}]
)
def test_a_vllm_holds_its_language_model_itself(given):
    (name,) = given
    with pytest.raises(InputError, match=f"--{name} is .* start the vLLM with its own options"):
        serve(engine="vllm", engine_url="http://x/v1", **given)


# ---------------------------------------------------------------------- placement


def test_all_of_a_model_is_moved(build):
    model = to_device(build().model, META)
    assert {t.device for t in [*model.parameters(), *model.buffers()]} == {META}


def test_a_placed_language_model_stays(build):
    model = build().model
    model.language_model.hf_device_map = {"": "cpu"}
    model = to_device(model, META)
    assert {p.device.type for p in model.language_model.parameters()} == {"cpu"}
    rest = [p for n, p in model.named_parameters() if not n.startswith("language_model.")]
    assert {p.device for p in rest} == {META}
    assert model.hf_device_map == {"": "cpu"}


def test_layers_that_will_be_shared_out_stay_in_host_memory(build):
    """What does not fit one device never is on it whole."""
    model = to_device(build().model, META, Holding(shard=True))
    inside = {id(p) for layer in layers(model.language_model) for p in layer.parameters()}
    assert inside
    for parameter in model.parameters():
        assert parameter.device.type == ("cpu" if id(parameter) in inside else "meta")
    assert model.get_input_embeddings().weight.device == META


# ---------------------------------------------------------------------- keywords


def test_a_quantised_model_is_loaded_on_its_own_ranks_gpu(monkeypatch):
    monkeypatch.setattr("crome.checkpoints.holding.find_spec", lambda name: True)
    monkeypatch.setattr("transformers.BitsAndBytesConfig", lambda **given: given)
    held = Holding(quantization="8bit")
    assert held.keywords(torch.device("cuda", 1))["device_map"] == {"": 1}
    assert held.keywords(torch.device("cpu"))["device_map"] == {"": "cpu"}
    spread = Holding(quantization="8bit", device_map="auto")
    assert spread.keywords(torch.device("cuda", 1))["device_map"] == "auto"
    with pytest.raises(InputError, match="needs a GPU of CUDA or the CPU"):
        held.keywords(torch.device("mps"))


def test_attention_is_chosen_by_the_device_that_computes(two_gpus):
    for device in map(torch.device, ("cpu", "cuda")):  # the kernel is chosen call by call
        assert tower_kwargs("bfloat16", "auto", device=device)["language_kwargs"] == {}
    assert tower_kwargs("bfloat16", "auto")["language_kwargs"] == {}
    assert tower_kwargs("float16", "auto")["dtype"] is torch.float16


def test_keywords_reach_from_pretrained(build, monkeypatch, tmp_path):
    """Through a verb, for both kinds of model the same way."""
    from crome.model.modeling import CromeForConditionalGeneration

    pair = build()
    pair.model.save_pretrained(tmp_path)
    pair.processor.save_pretrained(tmp_path)
    seen = {}
    real = CromeForConditionalGeneration.from_pretrained.__func__

    def spy(cls, name, **keywords):
        seen.update(keywords)
        return real(cls, name, **keywords)

    monkeypatch.setattr(CromeForConditionalGeneration, "from_pretrained", classmethod(spy))
    ask("What?", checkpoint=str(tmp_path), max_new_tokens=1, dtype="float32", device="cpu",
        holding=Holding(device_map="cpu"))  # fmt: skip
    assert seen == {"dtype": torch.float32, "language_kwargs": {"device_map": "cpu"}}


# ---------------------------------------------------------------------- training


def test_the_trainer_is_told_the_device(two_gpus, tmp_path):
    def told(device: str):
        run = RunSettings(
            optimization=Optimization(learning_rate=1e-4), device=device, workers=None
        )
        return keywords(tmp_path, run)

    assert told("cpu")["use_cpu"]
    assert told("cpu")["dataloader_num_workers"] == 0
    assert not told("cpu")["dataloader_pin_memory"]
    assert not told("auto")["use_cpu"]
    assert told("cuda")["dataloader_pin_memory"]


@pytest.mark.parametrize("verb", [
    lambda _: start_processes("cuda:1"),
    lambda out: ablate(out, device="cuda:1"),
    lambda out: retention(out, device="cuda:1"),
    lambda out: succession(out, device="cuda:1"),
    lambda out: quickstart(out, device="cuda:1"),
])  # fmt: skip
def test_training_takes_the_first_gpu_it_sees(two_gpus, verb, tmp_path):
    with pytest.raises(InputError, match=r"set CUDA_VISIBLE_DEVICES=1 and give --device cuda"):
        verb(tmp_path / "out")


def test_processes_on_the_cpu_of_a_machine_with_gpus_find_each_other(two_gpus, monkeypatch):
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert start_processes("cpu") == 2
    assert devices.os.environ["ACCELERATE_USE_CPU"] == "true"
    monkeypatch.delenv("ACCELERATE_USE_CPU")


def test_a_model_loads_on_a_named_device(build, tmp_path):
    pair = build()
    pair.model.save_pretrained(tmp_path)
    pair.processor.save_pretrained(tmp_path)
    model, _ = load(str(tmp_path), "float16", device="cpu")
    assert model.language_model.dtype is torch.float16
    assert {p.device.type for p in model.parameters()} == {"cpu"}


def test_an_adapter_fits_its_base_in_float16(build, tmp_path):
    """It rounds small weights, so sampled values of the towers differ; the bridge is in float32."""
    pair = build()
    pair.model.save_pretrained(tmp_path / "base")
    pair.processor.save_pretrained(tmp_path / "base")
    pair.model.save_adapter(tmp_path / "task")
    half, _ = load(str(tmp_path / "base"), "float16", device="cpu")
    assert (
        half.base_identity()["language_fingerprint"]
        != (pair.model.base_identity()["language_fingerprint"])
    )
    half.load_adapter(tmp_path / "task")
    half.save_adapter(tmp_path / "half")
    pair.model.load_adapter(tmp_path / "half")
    with torch.no_grad():
        half.query_tokens += 1
    with pytest.raises(InputError, match="bridge_fingerprint"):
        half.load_adapter(tmp_path / "task")
