"""The command: each verb parses, calls one function, prints. torch is only imported inside the verb that needs it.

Exit codes: 0 done, 2 bad input (one message, nothing changed), 75 stopped and resumable.
"""

import dataclasses
import io
import os
import sys
from pathlib import Path
from typing import Any

from cyclopts import App, CycloptsError, Group
from rich.console import Console

from skipway import __version__, cli_bench, cli_data, cli_search, cli_see, cli_train, tables
from skipway.errors import InputError, ReadError, unknown
from skipway.flags import NetworkFlags, TrustCode, settings_of
from skipway.terminal import BAD_INPUT, DONE, STOPPED, console, print_json

app = App(
    name="skipway",
    version=__version__,
    help="Build, train, see and ship residual networks.",
    help_format="markdown",
    suppress_keyboard_interrupt=False,  # which main answers, in words
    help_epilogue="Start with `skipway train fashion-sample`, or `skipway train FOLDER` for your own images.",
)
app["--help"].group = app["--version"].group = Group("Help")
app.command(cli_train.train)
app.command(cli_train.resume)
app.command(cli_data.doctor)
app.command(cli_data.data)
app.command(cli_search.find_lr)
app.command(cli_search.tune)
app.command(cli_bench.bench)
app.command(cli_see.see)
app.command(cli_see.lab)


@app.command
def evaluate(
    run: Path,
    data: str | None = None,
    /,
    *,
    split: str | None = None,
    tta: str | None = None,
    device: str = "auto",
    json: bool = False,
    trust_code: TrustCode = False,
) -> int:
    """Score the best network of RUN on its own test split, or on DATA.

    **Examples**

    `skipway evaluate runs/photos-resnet18-1`

    `skipway evaluate runs/photos-resnet18-1 other-photos/ --json`

    Parameters
    ----------
    run
        A run folder, or its weights.safetensors.
    data
        Other data to score on; its class names must be among the network's.
    split
        train, val, test or all. Default: test where there is one, else val, else all.
    tta
        Also score with views averaged: flip or flip_shift; none: only plain. Default: as the run was trained.
    device
        Where to compute: cpu, cuda, cuda:1, mps. Default: the accelerator where there is one.
    json
        Print one JSON object.
    """
    from skipway.evaluation.evaluate import evaluate as score_run

    with console.status("scoring"):
        result = score_run(run, data, split=split, tta=tta, device=device, trust_code=trust_code)
    print_json(dataclasses.asdict(result)) if json else console.print(tables.evaluation(result))
    _say_bad(result.bad_files)
    return DONE


@app.command
def predict(run: Path, *images: str, top: int = 5, json: bool = False, trust_code: TrustCode = False) -> int:
    """Name images with the best network of RUN.

    **Examples**

    `skipway predict runs/photos-resnet18-1 bee.jpg`

    `skipway predict runs/photos-resnet18-1 holiday/ 'more/*.jpg' --top 1 --json`

    Parameters
    ----------
    run
        A run folder, or its weights.safetensors.
    images
        Image files, folders (searched whole) and patterns.
    top
        How many classes to name.
    json
        Print one JSON object an image.
    """
    from skipway.shipping.predictor import load
    from skipway.shipping.select import find_images

    predictor = load(run, trust_code=trust_code)
    bad: dict[str, str] = {}
    done = 0
    for path, prediction in predictor.predict_files(find_images(images), top=top):
        if isinstance(prediction, ReadError):
            bad[prediction.name] = prediction.reason
            continue
        done += 1
        if json:
            print_json({"image": str(path), "predictions": prediction.ranked()}, indent=None)
        else:
            console.print(tables.prediction(str(path), prediction), soft_wrap=True)
    _say_bad(bad)
    if not done:
        raise InputError("none of the images can be read")
    return DONE


@app.command
def describe(
    network: str,
    /,
    *,
    image_size: int = 0,
    batch_size: int = 1,
    svg: Path | None = None,
    json: bool = False,
    trust_code: TrustCode = False,
    flags: NetworkFlags | None = None,  # pyrefly: ignore[invalid-annotation]
) -> int:
    """Show the layers, shapes, parameters, FLOPs and skips of NETWORK.

    **Examples**

    `skipway describe tutorial`

    `skipway describe resnet50 --image-size 160 --batch-size 32`

    `skipway describe resnet20 --svg resnet20.svg`

    `skipway describe resnet50 --stem deep --attention se`

    Parameters
    ----------
    network
        A name from `skipway networks`, timm:NAME, torchvision:NAME, python:module:function, or a run folder.
    image_size
        Pixels a side. Default: 32 for the cifar stem, a run's own, else 224.
    batch_size
        Images that the memory of a training step is counted for.
    svg
        A new file to draw the network in.
    json
        Print one JSON object.
    """
    from skipway.nn.describe import changed
    from skipway.nn.describe import describe as describe_network
    from skipway.run import read_spec

    spec: Any = network
    if "/" in network or network.endswith(".safetensors") or Path(network, "spec.toml").is_file():
        run_spec = read_spec(network)
        spec, image_size = run_spec.network, image_size or run_spec.data.image_size
    spec = changed(spec, settings_of(flags, None).get("network", {}))
    result = describe_network(spec, image_size=image_size, batch_size=batch_size, trust_code=trust_code)
    if svg is not None:
        from skipway.nn.drawing import save

        save(result, svg)
        print(f"drawn in {svg}", file=sys.stderr)
    print_json(dataclasses.asdict(result)) if json else console.print(tables.description(result))
    return DONE


@app.command
def networks(pattern: str = "*", /) -> int:
    """List the networks that go by a name, with parameters and multiply-accumulates.

    **Examples**

    `skipway networks`

    `skipway networks '*50*'`

    Parameters
    ----------
    pattern
        Part of a name, or a pattern with * and ?.
    """
    from skipway.nn.describe import describe as describe_network
    from skipway.nn.zoo import ZOO, matching

    found = matching(pattern)
    if not found:
        raise unknown("network (of skipway's own)", pattern, ZOO)
    console.print(tables.networks([describe_network(name) for name in found]))
    return DONE


@app.command
def recipes() -> int:
    """List the recipes: named, complete settings for a run."""
    from skipway.recipes import RECIPES

    console.print(tables.recipes(RECIPES))
    return DONE


def _say_bad(bad: dict[str, str]) -> None:
    """Name and count the files that could not be read, on standard error."""
    for name, reason in bad.items():
        print(f"left out {name}: {reason}", file=sys.stderr)
    if bad:
        print(f"left out {len(bad)} file{'s' if len(bad) > 1 else ''} in all", file=sys.stderr)


def main(arguments: list[str] | None = None) -> None:
    """Run the command and exit with its code."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # else lost ones are told with stack traces
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file's name may hold bytes that no terminal shows
    try:
        code = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except (CycloptsError, InputError) as error:
        code = _fail(str(error), getattr(error, "code", BAD_INPUT))
        if code == STOPPED:  # another process is lost, and what waits for it would wait on
            sys.stdout.flush()
            os._exit(code)
    except BrokenPipeError:
        code = DONE
    except OSError as error:
        code = _fail(f"{error.filename or 'file'}: {error.strerror or error}")
    except KeyboardInterrupt:
        code = _fail("stopped", 130)
    sys.exit(code or DONE)


def _fail(message: str, code: int = BAD_INPUT) -> int:
    rank = os.environ.get("RANK", "0")  # of several processes, as torchrun counts them
    who = "skipway" if rank == "0" else f"skipway, process {rank}"
    Console(stderr=True, emoji=False).print(f"[bold red]{who}:[/] {_plain(message)}", highlight=False, soft_wrap=True)
    return code


def _plain(message: str) -> str:
    from rich.markup import escape

    return escape(" ".join(message.split()))
