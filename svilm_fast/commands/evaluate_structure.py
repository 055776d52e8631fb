"""`svilm evaluate structure`: what a run's model knows about regions and time."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from svilm_fast.commands.options import Device, MaxClips, RunDir, Split, WeightsKind
from svilm_fast.core.errors import UserError
from svilm_fast.core.terminal import print
from svilm_fast.train.config.options import Overrides


def structure(
    run: RunDir,
    overrides: Overrides = None,
    split: Split = "test",
    max_clips: MaxClips = None,
    weights: WeightsKind = None,
    device: Device = "auto",
    name: Annotated[
        str | None,
        typer.Option(
            help="name of the files in evaluation/ [default: structure, or structure_alike]"
        ),
    ] = None,
    partners: Annotated[
        Literal["random", "alike"],
        typer.Option(
            help="clips that are pasted: random ones, or those with the nearest mean frame"
        ),
    ] = "random",
) -> None:
    """Measure pointing of nouns, boundaries of pasted parts and similarity of segments.

    Pointing needs group tokens, and clips whose JSON has masks (`svilm data world`).
    """
    from svilm_fast.data.loader import build_loader
    from svilm_fast.evaluation.structure import measure_structure
    from svilm_fast.tasks.clips import evaluation_clips
    from svilm_fast.tasks.pretrain.retrieval import encoder_of
    from svilm_fast.train.folder.ownership import check_not_foreign, placed
    from svilm_fast.train.ranks.process_group import choose_device
    from svilm_fast.train.run.evaluate import check_result_name, files_of, write_result
    from svilm_fast.train.run.loaded_run import load_run

    name = name or ("structure" if partners == "random" else f"structure_{partners}")
    check_result_name(name)
    chosen = choose_device(device, 0)
    loaded = load_run(run, device=chosen, overrides=overrides, weights=weights)
    config, folder = loaded.config, loaded.files.evaluation
    if config.video.num_segments < 2:
        raise UserError(
            f"video.num_segments={config.video.num_segments}: boundaries and similarities need a "
            "run with at least two segments"
        )
    data = evaluation_clips(config, split, loaded.tokenizer, nouns=True, max_clips=max_clips)
    check_not_foreign(loaded.files, files_of(folder, name))
    batch = config.evaluation.batch_size
    with build_loader(data.config, data, batch_size=batch, rank=0, world_size=1) as batches:
        result = measure_structure(
            encoder_of(loaded.model), batches, config.data.cut_paste, partners
        )
    with placed(loaded.files, folder) as drafts:
        write_result(result, drafts, name, step=loaded.step, weights=loaded.weights)
    print("\n".join(result.lines()))
    print(f"wrote {folder / name}.json")
