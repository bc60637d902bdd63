"""The verbs `skipway see` and `skipway lab`. They are hung into the command in cli.py."""

import contextlib
import dataclasses
from pathlib import Path

from skipway.errors import InputError
from skipway.flags import TrustCode
from skipway.terminal import DONE, console, print_json, say

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def see(
    run: str,
    /,
    *,
    only: list[str] | None = None,
    budget: str = "2m",
    data: str = "",
    out: Path | None = None,
    json: bool = False,
    trust_code: TrustCode = False,
) -> int:
    """Look into the network of RUN: experiments of the papers on it, what they show, one page.

    Gradients, responses, cut blocks, paths, refinement, the loss around the weights, where it looks. What is run fits
    into --budget; results that were found before cost nothing. The page (one HTML file that needs no network) and its
    pictures and numbers go into the folder `see` of the run.

    **Examples**

    `skipway see runs/photos-resnet18-1`

    `skipway see runs/photos-resnet18-1 --only lesion --only attention --budget 30s`

    `skipway see resnet56 --data fashion-sample`

    Parameters
    ----------
    run
        A run folder, its weights.safetensors, or a network's name, then with fresh weights.
    only
        Experiments by name; again for another.
    budget
        Time for all of it once the program has started: 90s, 2m, 1h.
    data
        Other images than the run's own.
    out
        Where to write instead.
    json
        Print one JSON object: readings, and where the page is.
    """
    budget_s = seconds_of(budget)
    from skipway.insight.see import see as look

    found = look(
        run,
        only=only or (),
        budget_s=budget_s,
        data=data,
        out=out or "",
        trust_code=trust_code,
        console=None if json else console,
    )
    if json:
        readings = {f.experiment.name: dataclasses.asdict(f.reading) for f in found.findings}
        print_json({"page": str(found.page), "readings": readings, "left_out": found.left_out})
    else:
        say(f"\npage {found.page}")
    return DONE


def lab(
    what: str = "resnet20",
    /,
    *,
    data: str = "",
    port: int = 0,
    browser: bool = True,
    trust_code: TrustCode = False,
) -> int:
    """Open the lab on the network of a run: cut a skip, drop a block, race the plain twin, in the browser.

    The page is served on this machine alone (127.0.0.1) until Ctrl-C.

    **Examples**

    `skipway lab runs/photos-resnet18-1`

    `skipway lab`                              (resnet20 with fresh weights on scikit-learn's digits)

    `skipway lab timm:resnet18 --data photos/ --no-browser --port 8080`

    Parameters
    ----------
    what
        A run folder, its weights.safetensors, or a network's name.
    data
        Other images than the run's own.
    port
        0: a free one.
    browser
        Open the page.
    """
    from skipway.insight.lab.serve import serve

    with contextlib.suppress(KeyboardInterrupt):  # its only end
        serve(what, data=data, port=port, open_browser=browser, trust_code=trust_code)
    return DONE


def seconds_of(text: str) -> float:
    """Seconds of '90', '90s', '2m' or '1h'. Raises InputError."""
    number, unit = (text[:-1], text[-1]) if text[-1:] in UNITS else (text, "s")
    try:
        found = float(number) * UNITS[unit]
    except ValueError:
        found = 0.0
    if not 0 < found < float("inf"):
        raise InputError(f"budget must be a time, as 90s, 2m or 1h, got '{text}'")
    return found
