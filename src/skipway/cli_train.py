"""The verbs `skipway train` and `skipway resume`. They are hung into the command in cli.py."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from skipway.flags import WANTED, Flags, ResumeFlags, TrustCode, Wanted, settings_of
from skipway.terminal import DONE, STOPPED, console

if TYPE_CHECKING:
    from skipway.run import Run


def train(
    data: str | None = None,
    /,
    *,
    out: Path | None = None,
    wanted: Wanted = WANTED,
    flags: Flags | None = None,  # pyrefly: ignore[invalid-annotation]
) -> int:
    """Train a network on DATA, or go on with the unfinished run of the same settings.

    Recipe < config file < flags. Ctrl-C stops cleanly; the same command goes on, as it does after a kill.

    **Examples**

    `skipway train fashion-sample --recipe demo`

    `skipway train photos/ --network resnet18 --epochs 20 --mixup 0.2`

    `skipway train cifar10 --network resnet56 --shortcut none --out runs/plain56`

    `skipway train photos/ --network resnet50 --weights torchvision:IMAGENET1K_V2 --freeze stage3`

    `skipway train photos/ --network timm:vit_tiny_patch16_224 --optimizer adamw`

    Parameters
    ----------
    data
        A built-in set (fashion-sample, fashion, cifar10, cifar100), a folder of images or of parquet files.
        Default: the recipe's.
    out
        The run folder. Default: runs/DATA-NETWORK-N.
    """
    from skipway.training.train import train as run_training

    run = run_training(
        data or "",
        network=wanted.network,
        recipe=wanted.recipe,
        config=wanted.config,
        settings=settings_of(flags, None),
        out=out,
        console=console,
        trust_code=wanted.trust_code,
    )
    return _code(run)


def resume(
    run: Path,
    /,
    *,
    trust_code: TrustCode = False,
    flags: ResumeFlags | None = None,  # pyrefly: ignore[invalid-annotation]
) -> int:
    """Go on with the unfinished RUN from its newest checkpoint, to the same bits as if it had never stopped.

    `skipway train` with the arguments that began it does the same. Give only what is to change.

    **Examples**

    `skipway resume runs/photos-resnet18-1`

    `skipway resume runs/photos-resnet18-1 --epochs 40`

    Parameters
    ----------
    run
        A run folder.
    """
    from skipway.training.train import resume as go_on

    made = go_on(run, settings=settings_of(flags, None), console=console, trust_code=trust_code)
    return _code(made)


def _code(run: "Run") -> int:
    """How it ended; the first of several processes says so, whose machine has the run folder."""
    if os.environ.get("RANK", "0") != "0":
        return DONE
    return STOPPED if run.summary.get("status") == "stopped" else DONE
