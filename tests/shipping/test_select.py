import pytest

from skipway.data.images.reading import SUFFIXES
from skipway.shipping.select import find_images


def test_a_folder_is_searched_for_images_and_scans_of_every_suffix(tmp_path):
    wanted = []
    for suffix in sorted(SUFFIXES):
        for place, name in enumerate((f"x{suffix}", f"sub/X.V1{suffix.upper()}")):
            file = tmp_path / str(place) / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
            wanted.append(file)
    for other in ("notes.txt", "x.gz", "x.nii.gz.md5", "png", "x.npy"):
        (tmp_path / other).touch()
    (tmp_path / "folder.png").mkdir()
    assert ".nii.gz" in SUFFIXES
    assert find_images([str(tmp_path)]) == sorted(wanted)


@pytest.mark.parametrize("name", ["scan.nii.gz", "IM000001"])
def test_a_file_that_is_named_is_taken_whatever_its_suffix(tmp_path, name):
    (tmp_path / name).touch()
    assert find_images([str(tmp_path / name)]) == [tmp_path / name]
