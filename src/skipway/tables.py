"""What the command prints, as rich renderables. No logic: plain data in, tables out."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from skipway.data.doctor.examine import Diagnosis
    from skipway.evaluation.evaluate import Evaluation
    from skipway.evaluation.labels import LabelReport
    from skipway.nn.description import Description, LayerRow
    from skipway.shipping.predictor import Prediction


def _table(*columns: str, right: Sequence[str] = ()) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", no_wrap=column != "source")
    return table


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def description(network: "Description") -> Group:
    """Layers in order of computation; the skip of each block runs beside it, from its first layer to the addition.

    Norms, relus and pools share the row of the layer they follow. Below: totals, memory, receptive field, warning.
    """
    from skipway.nn.skeleton import short

    table = _table("skip", "part", "layers", "output", "parameters", "MACs", right=("output", "parameters", "MACs"))
    rows = _merged(network.layers)
    for i, row in enumerate(rows):
        first = i == 0 or rows[i - 1].part != row.part
        last = i == len(rows) - 1 or rows[i + 1].part != row.part
        table.add_row(
            _arc(network.skips.get(row.part), first=first, last=last),
            row.part if first else "",
            row.kind,
            _shape(row.output),
            f"{row.parameters:,}" if row.parameters else "",
            short(row.macs) if row.macs else "",
        )
    head = Text.assemble((network.name, "bold"), f"  input {_shape(network.input)}  {network.source}")
    total = (
        f"{network.parameters:,} parameters, {network.macs:,} MACs, {network.flops:,} FLOPs (2 x MACs) for one image"
    )
    warning = [Text(f"warning: {network.warning}", style="yellow")] if network.warning else []
    return Group(head, "", table, "", total, *_memory(network), *_sight(network), *warning)


def _memory(network: "Description") -> list[str]:
    """What a training step keeps for its backward pass, where it is known."""
    from skipway.nn.skeleton import short

    images = f"{network.batch_size:,} image{'s' if network.batch_size > 1 else ''}"
    kept = short(network.activation_bytes, "B")
    return [f"a training step of {images} keeps {kept} of activations (fp32)"] if network.activation_bytes else []


def _sight(network: "Description") -> list[str]:
    """What the last feature map sees of the image, where it is known."""
    seen, (height, width) = network.receptive_field, network.input[1:]
    more = f", more than the whole image ({height}x{width})" if seen > max(height, width) else ""
    return [f"one pixel of the last feature map sees {seen}x{seen} pixels{more}"] if seen else []


def _role(layer: "LayerRow") -> str:
    """What a layer is for, where it is not the branch's own."""
    return next((role for role in ("shortcut", "attention") if layer.layer.startswith(role)), "")


def _merged(layers: "Sequence[LayerRow]") -> "list[LayerRow]":
    """Rows of convolutions and linear layers, each with what follows it; the last relu of a block is the addition's."""
    rows: list[LayerRow] = []
    for i, layer in enumerate(layers):
        ends = i == len(layers) - 1 or layers[i + 1].part != layer.part
        begins = not rows or rows[-1].part != layer.part or (ends and layer.part.startswith("stage"))
        if layer.macs or begins or _role(layer) != _role(layers[i - 1]):
            role = _role(layer)
            rows.append(dataclasses.replace(layer, kind=f"{role}: {layer.kind}") if role else layer)
        else:
            before = rows[-1]
            rows[-1] = dataclasses.replace(
                before,
                kind=f"{before.kind} {layer.kind}",
                output=layer.output,
                parameters=before.parameters + layer.parameters,
            )
    return rows


def _arc(skip: str | None, *, first: bool, last: bool) -> Text:
    """The skip's line beside one row: it leaves before the first and joins, with +, before the last relu."""
    if skip is None or skip == "none":
        return Text("")
    if first:
        return Text(f"╭─ {skip}", style="cyan")
    return Text("╰─▶ +" if last else "│", style="cyan")


def networks(found: "Sequence[Description]") -> Table:
    """Names with parameters, MACs at the family's own image size, and source."""
    table = _table("name", "parameters", "GMACs", "at", "source", right=("parameters", "GMACs", "at"))
    for network in found:
        size = f"{network.input[1]} px"
        table.add_row(
            network.name, f"{network.parameters:,}", f"{network.macs / 1e9:.3f}", size, escape(network.source)
        )
    return table


def recipes(table_of: dict[str, Callable[[], Any]]) -> Table:
    """Recipes with their descriptions."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("recipe", no_wrap=True)
    table.add_column("network", no_wrap=True)
    table.add_column("what it is")
    for name, make in table_of.items():
        table.add_row(name, make().network.name, escape(" ".join((make.__doc__ or "").split())))
    return table


def evaluation(result: "Evaluation") -> Group:
    """Scores of all, then of each class with what it is most often taken for, or of each label at its threshold."""
    if result.labels:
        return _labels(result, result.labels)
    table = _table("class", "images", "accuracy", "most often taken for", right=("images", "accuracy"))
    for i, (name, accuracy) in enumerate(result.class_accuracy.items()):
        row = result.confusion[i]
        wrong = max((j for j in range(len(row)) if j != i), key=row.__getitem__)
        taken = f"{escape(result.classes[wrong])} ({row[wrong]})" if row[wrong] else ""
        table.add_row(escape(name), f"{sum(row):,}", "-" if accuracy is None else f"{accuracy:.2%}", taken)
    top5 = f"   top-5 {result.top5_accuracy:.2%}" if result.top5_accuracy and len(result.classes) > 5 else ""
    line = f"accuracy [bold]{result.accuracy:.2%}[/]{top5}   loss {result.loss:.4f}"
    more = f"balanced accuracy {_share(result.balanced_accuracy)}   macro F1 {_share(result.macro_f1)}"
    return Group(_head(result), line, *_beside(result), more, *_binary(result), "", table)


def _head(result: "Evaluation") -> str:
    return f"{escape(result.data)}, {result.split} split, {result.num_images:,} images"


def _beside(result: "Evaluation") -> list[str]:
    """The scores with test-time augmentation, where they were asked for."""
    scores = result.tta
    if scores is None:
        return []
    main = f"accuracy {scores.accuracy:.2%}" if result.labels is None else f"mAP {_share(scores.map)}"
    return [f"  with test-time augmentation ({scores.kind}): {main}   loss {scores.loss:.4f}"]


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"


def _binary(result: "Evaluation") -> list[str]:
    """Two classes: what the second one's scores are."""
    scores = result.binary
    if scores is None:
        return []
    ranked = f"AUROC {_share(scores.auroc)}   average precision {_share(scores.average_precision)}"
    found = f"precision {_share(scores.precision)}   recall {_share(scores.recall)}"
    rest = f"specificity {_share(scores.specificity)}   F1 {_share(scores.f1)}"
    return [f"positive class {escape(scores.positive)}: {ranked}", f"  {found}   {rest}"]


def _labels(result: "Evaluation", scores: "LabelReport") -> Group:
    """Several labels an image: mAP and F1, and each label's scores."""
    numbers = ("images", "AP", "threshold", "precision", "recall", "F1")
    table = _table("label", *numbers, right=numbers)
    for row in scores.labels:
        at = (_share(row.precision), _share(row.recall), _share(row.f1))
        ap = _share(row.average_precision)
        table.add_row(escape(row.name), f"{row.positives:,}", ap, f"{row.threshold:.3f}", *at)
    line = f"mAP [bold]{_share(scores.map)}[/]   loss {result.loss:.4f}"
    f1 = f"micro F1 {_share(scores.micro_f1)}   macro F1 {_share(scores.macro_f1)}"
    more = f"{f1}   all labels right {_share(scores.subset_accuracy)}"
    left = ", ".join(scores.without_positives)
    said = [f"mAP and macro F1 leave out what no image has: {escape(left)}"] if left else []
    return Group(_head(result), line, *_beside(result), more, *said, "", table)


def prediction(image: str, result: "Prediction") -> Text:
    """One line an image: names with probabilities, the best first; + before labels that reach their threshold."""
    text = Text(image + "  ")
    for i, (name, probability) in enumerate(zip(result.names, result.probabilities, strict=True)):
        chosen = i == 0 if result.chosen is None else name in result.chosen
        sign = "+" if chosen and result.chosen is not None else ""
        text.append(f"{sign}{name} {probability:.1%}  ", style="bold" if chosen else "dim")
    return text


COLOURS = {"error": "bold red", "warning": "yellow", "note": "dim"}
SHOWN_FILES = 3


def diagnosis(found: "Diagnosis") -> Group:
    """Findings, the worst first, each with some files and what to do; then the verdict."""
    from skipway.data.doctor.case import counted, shown

    lines: list[Any] = []
    for finding in found.findings:
        lines.append(Text.assemble((f"{finding.severity:<8}", COLOURS[finding.severity]), shown(finding.message)))
        remarks = finding.remarks or ("",) * len(finding.files)
        told = [f"{shown(n)} ({shown(r)})" if r else shown(n) for n, r in zip(finding.files, remarks, strict=True)]
        rows = [" = ".join(told[place] for place in group[:SHOWN_FILES]) for group in finding.groups] or told
        lines += [Text(f"          {row}", style="cyan") for row in rows[:SHOWN_FILES]]
        if len(rows) > SHOWN_FILES:
            lines.append(Text(f"          and {len(rows) - SHOWN_FILES:,} more", style="cyan"))
        if finding.advice:
            lines.append(Text(f"        -> {finding.advice}"))
    errors, warnings = found.count("error"), found.count("warning")
    images = counted(found.statistics["images"], "image")
    said = "nothing to do" if not errors + warnings else f"{counted(errors, 'error')}, {counted(warnings, 'warning')}"
    style = COLOURS["error" if errors else "warning"] if errors + warnings else "bold green"
    return Group(*lines, "", Text.assemble(f"{shown(found.path)}, {images}: ", (said, style)))
