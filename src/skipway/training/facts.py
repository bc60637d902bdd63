"""Facts about the data of a run: whether they are still the same, and which files were left out."""

import hashlib
from collections.abc import Mapping
from typing import Any

from skipway.data.doctor.examine import quick_doctor
from skipway.data.source import Source
from skipway.data_spec import DataSpec
from skipway.training.plan import Plan


def data_facts(plan: Plan) -> dict[str, Any]:
    """What shows that the data are still the same: how many images, and a hash over the labels of each split."""
    splits = plan.splits
    parts = [splits.train, splits.val, *([] if splits.test is None else [splits.test])]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.numpy().tobytes() + plan.source.labels[part].numpy().tobytes())
    return {"num_images": sum(map(len, parts)), "labels_sha256": digest.hexdigest()}


def bad_files_note(bad: Mapping[str, str], way: str) -> list[str]:
    """One sentence for the files that cannot be read, by what --bad-files says; nothing where there are none."""
    if not bad:
        return []
    shown = [f"{name} ({reason})" for name, reason in list(bad.items())[:5]]
    more = f", and {len(bad) - 5} more (all in summary.json)" if len(bad) > 5 else ""
    done = "left out, or replaced in batches," if way == "replace" else "left out"
    return [f"{done} {len(bad)} file{'s' if len(bad) > 1 else ''} that cannot be read: {', '.join(shown)}{more}"]


def doctor_notes(source: Source, spec: DataSpec) -> list[str]:
    """What the doctor warns of at a glance, a sentence each; files that cannot be read are told elsewhere."""
    found = [f for f in quick_doctor(source, spec) if f.severity != "note" and f.kind != "unreadable"]
    notes = [f"{f.severity}: {f.message}" + (f" ({f.advice})" if f.advice else "") for f in found[:4]]
    more = f"{len(found) - 4} more; " if len(found) > 4 else ""
    return [*notes, f"{more}skipway doctor tells all, with the files"] if notes else []
