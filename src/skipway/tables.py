"""What the command prints, as rich renderables. No logic: plain data in, tables out."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from skipway.evaluation.evaluate import Evaluation
    from skipway.nn.describe import Description, LayerRow
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

    Norms, relus and pools share the row of the layer they follow.
    """
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
            _short(row.macs) if row.macs else "",
        )
    head = Text.assemble((network.name, "bold"), f"  input {_shape(network.input)}  {network.source}")
    total = (
        f"{network.parameters:,} parameters, {network.macs:,} MACs, {network.flops:,} FLOPs (2 x MACs) for one image"
    )
    return Group(head, "", table, "", total)


def _merged(layers: "Sequence[LayerRow]") -> "list[LayerRow]":
    """Rows of convolutions and linear layers, each with what follows it; the last relu of a block is the addition's."""
    rows: list[LayerRow] = []
    for i, layer in enumerate(layers):
        ends = i == len(layers) - 1 or layers[i + 1].part != layer.part
        begins = not rows or rows[-1].part != layer.part or (ends and layer.part.startswith("stage"))
        if layer.macs or begins:
            rows.append(layer)
        else:
            before = rows[-1]
            rows[-1] = dataclasses.replace(
                before,
                kind=f"{before.kind} {layer.kind}",
                output=layer.output,
                parameters=before.parameters + layer.parameters,
            )
    return rows


def _short(count: int) -> str:
    """A count in thousands, millions or billions: 2,359,296 -> 2.36M."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.2f}{unit}"
    return str(count)


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
    """Accuracy, loss, and each class with what it is most often taken for."""
    table = _table("class", "images", "accuracy", "most often taken for", right=("images", "accuracy"))
    for i, (name, accuracy) in enumerate(result.class_accuracy.items()):
        row = result.confusion[i]
        wrong = max((j for j in range(len(row)) if j != i), key=row.__getitem__)
        taken = f"{escape(result.classes[wrong])} ({row[wrong]})" if row[wrong] else ""
        table.add_row(escape(name), f"{sum(row):,}", "-" if accuracy is None else f"{accuracy:.2%}", taken)
    head = f"{escape(result.data)}, {result.split} split, {result.num_images:,} images"
    top5 = f"   top-5 {result.top5_accuracy:.2%}" if len(result.classes) > 5 else ""
    return Group(head, f"accuracy [bold]{result.accuracy:.2%}[/]{top5}   loss {result.loss:.4f}", "", table)


def prediction(image: str, result: "Prediction") -> Text:
    """One line an image: names with probabilities, the best first."""
    text = Text(image + "  ")
    for i, (name, probability) in enumerate(zip(result.names, result.probabilities, strict=True)):
        text.append(f"{name} {probability:.1%}  ", style="bold" if i == 0 else "dim")
    return text
