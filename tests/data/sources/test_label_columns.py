import pytest
from hypothesis import given
from hypothesis import strategies as st

from skipway.data.sources.columns import column_of, join
from skipway.data.sources.labels import make_groups, make_labels
from skipway.errors import InputError


@given(
    cells=st.lists(
        st.none()
        | st.booleans()
        | st.integers(-3, 3)
        | st.sampled_from(["", "1", "True", "x"])
        | st.just(float("nan")),
        max_size=20,
    ),
    cut=st.integers(0, 20),
)
def test_columns_give_back_their_cells(cells, cut):
    column = join([column_of("x", "t", cells[:cut]), column_of("x", "t", cells[cut:])], "t")
    found = [column.values[code] if code >= 0 else None for code in column.codes]
    assert [(type(c), c) for c in found] == [(type(c), c) if c == c and c != "" else (type(None), None) for c in cells]
    groups = make_groups(column).tolist()
    for i, one in enumerate(found):
        for j, other in enumerate(found):
            same = i == j or (one is not None and type(one) is type(other) and one == other)
            assert (groups[i] == groups[j]) == same


@pytest.mark.parametrize(
    ("cells", "classes"),
    [
        (["10", "9", "100", "9"], ("9", "10", "100")),
        ([10, 9, 100, -1], ("-1", "9", "10", "100")),
        ([1.0, 0.0, float("nan"), 10.0], ("0", "1", "10")),
        ([2, 1.5], ("1.5", "2")),
        (["2.5", "10.5", "1"], ("1", "2.5", "10.5")),
        (["v10", "v9"], ("v10", "v9")),
        ([True, False, True], ("False", "True")),
        ([" cat", "cat ", "dog"], ("cat", "dog")),
    ],
)
def test_classes_are_in_order_numbers_by_size(cells, classes):
    found = make_labels([column_of("label", "t", cells)], "", {})
    assert found.classes == classes
    for cell, label, missing in zip(cells, found.labels.tolist(), found.missing, strict=True):
        assert missing == (cell != cell)
        if not missing and isinstance(cell, (str, bool, int)):
            assert classes[label] == str(cell).strip()


@pytest.mark.parametrize("cells", [["1", 1], [True, 1], ["a", ["a"]], [["a", 1]]])
def test_mixed_types_are_no_labels(cells):
    with pytest.raises(InputError, match="column 'label' of t mixes labels of different types, such as"):
        make_labels([column_of("label", "t", cells)], "", {})
