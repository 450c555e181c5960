"""One stage of training on generated scenes: how the bridge of crome-tiny met its language model.

python -m tools.tiny.train --config configs/crome-tiny/pretrain.yaml
"""

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from torch.utils.data import Dataset

from crome.checkpoints.loading import load, new_tiny
from crome.model.stages import Stage
from crome.rows import Row
from crome.training.fit import fit
from crome.training.settings import Optimization, RunSettings
from tools.tiny.pictures import PicturePack
from tools.tiny.scenes import Scenes


@dataclass(frozen=True)
class SceneSettings:
    """Generated scenes as training data as training data.

    Attributes:
        pictures: Folder of a picture pack (`python -m tools.tiny.pictures`).
        count: Number of pictures.
        questions_per_image: Questions asked about each.
        curriculum: "pretrain" for captions, names, categories and colours, "instruct" for all.
        objects: Only so many things, those with the most pictures.
        single: Share of instruct pictures that show one thing.
        painted: Share of pictures of silhouettes in one colour.
        mix: Weights of question kinds that differ from the curriculum's own.
    """

    pictures: Path
    count: int
    questions_per_image: int = 8
    curriculum: Literal["pretrain", "instruct"] = "instruct"
    objects: int | None = None
    single: float = 0.5
    painted: float = 0.6
    mix: dict[str, float] | None = None


class SceneStream(Dataset[list[Row]]):
    """Generated scenes in order: item i holds the questions on picture i.

    Args:
        scenes: The generator.
    """

    def __init__(self, scenes: Scenes) -> None:
        self.scenes = scenes

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, position: int) -> list[Row]:
        return [
            Row((row["image"],), row["question"], row["answer"], row["id"], kind=row["kind"])
            for row in self.scenes[position]
        ]


def train(
    out: Path,
    scenes: SceneSettings,
    stage: Stage,
    optimization: Optimization,
    checkpoint: str = "crome-tiny",
    fresh: bool = False,
    dtype: Literal["bfloat16", "float32", "auto"] = "bfloat16",
    save_steps: int = 50,
    log_steps: int = 5,
    workers: int = 1,
    seed: int = 0,
) -> None:
    """Train one stage of crome-tiny on generated scenes.

    Args:
        out: Folder of the run; a stopped run goes on when the same command is given again.
        scenes: What is drawn and asked.
        stage: What trains, as in `crome train`.
        optimization: As in `crome train`.
        checkpoint: What to start from.
        fresh: Start from the packaged towers with an untrained bridge instead.
        dtype: Type of the frozen towers.
        save_steps: Steps between checkpoints.
        log_steps: Steps between logged losses.
        workers: Loader processes, which draw the scenes.
        seed: Of the scenes and of everything random.
    """
    start = new_tiny if fresh else partial(load, checkpoint)
    model, processor = start(dtype)
    generator = Scenes(
        PicturePack.load(scenes.pictures),
        seed=seed,
        stage=scenes.curriculum,
        length=scenes.count,
        questions_per_image=scenes.questions_per_image,
        objects=scenes.objects,
        single=scenes.single,
        painted=scenes.painted,
        mix=scenes.mix,
    )
    fit(
        model,
        processor,
        SceneStream(generator),
        out,
        RunSettings(
            stage=stage,
            optimization=optimization,
            save_steps=save_steps,
            log_steps=log_steps,
            workers=workers,
            seed=seed,
        ),
        record={
            "scenes": {k: str(v) if k == "pictures" else v for k, v in asdict(scenes).items()},
            "checkpoint": checkpoint,
            "fresh": fresh,
            "dtype": dtype,
        },
    )


if __name__ == "__main__":
    import sys

    from crome.options import call

    call(train, sys.argv[1:], name="python -m tools.tiny.train")
