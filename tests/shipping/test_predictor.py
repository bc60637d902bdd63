import os

import numpy as np
import pytest
import torch
from conftest import save_image
from PIL import Image

import skipway
from skipway.data.images.decode import decode
from skipway.data.images.reading import Reading
from skipway.data.pool import Pool
from skipway.errors import InputError, ReadError
from skipway.shipping.predictor import Prediction
from skipway.shipping.select import find_images


@pytest.fixture
def predictor(trained):
    return skipway.load(trained.folder)


def test_every_form_of_an_image_gives_the_same_answer(predictor, photos):
    path = photos / "bees" / "004.png"
    pixels = decode(path, Reading(3))
    array = pixels.permute(1, 2, 0).numpy()
    forms = [path, str(path), path.read_bytes(), Image.open(path), array, pixels]
    answers = predictor.predict(forms)
    assert len(answers) == 6
    assert all(answer == answers[0] for answer in answers)
    assert answers[0].name == "bees"
    assert sum(answers[0].probabilities) == pytest.approx(1)
    assert answers[0].probabilities[0] > answers[0].probabilities[1]


def test_predictions_are_what_the_network_says(predictor, photos):
    path = photos / "ants" / "001.png"
    preprocess = predictor.model.preprocess
    inputs = preprocess.normalise(preprocess.fit(decode(path, Reading(3)))[None])
    with torch.no_grad():
        want = predictor.model.network(inputs).softmax(1)
    torch.testing.assert_close(predictor.probabilities([path]), want)
    assert len(predictor.predict(path, top=1)[0].names) == 1


def test_many_images_answer_in_order(predictor, photos):
    paths = sorted(photos.rglob("*.png")) * 2
    names = [p.name for p in predictor.predict(paths)]
    assert names == [p.parent.name for p in paths]


def test_grey_and_transparent_arrays_are_taken(predictor):
    for shape in ((20, 20), (20, 20, 1), (20, 20, 4)):
        assert predictor.predict(np.zeros(shape, np.uint8))[0].names
    assert predictor.predict(torch.zeros(1, 20, 20, dtype=torch.uint8))[0].names


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4, 3)), "must be uint8"),
        (np.zeros((4, 4, 2), np.uint8), "must be \\(H, W\\)"),
        (np.zeros((0, 4, 3), np.uint8), "must be \\(H, W\\)"),
        (torch.zeros(4, 4), "must be \\(1 or 3, H, W\\)"),
    ],
)
def test_other_arrays_are_refused(predictor, image, message):
    with pytest.raises(InputError, match=message):
        predictor.predict(image)


def test_unreadable_bytes_are_refused(predictor):
    with pytest.raises(ReadError, match="image bytes: not an image"):
        predictor.predict(b"hello")


def test_find_images_takes_files_folders_and_patterns(photos):
    everything = find_images([str(photos)])
    assert len(everything) == 40
    assert find_images([str(photos / "ants" / "*.png")]) == everything[:20]
    one = photos / "bees" / "003.png"
    assert find_images([str(one), str(one)]) == [one]
    (photos / "notes.txt").write_text("x")
    assert len(find_images([str(photos)])) == 40
    for wrong in ([], [str(photos / "none")], [str(photos / "*.gif")]):
        with pytest.raises(InputError):
            find_images(wrong)


def test_files_are_named_in_order_as_predict_names_them(trained, tmp_path):
    paths = []
    for i in range(70):
        save_image(tmp_path / f"{i:02}.png", i, (20, 30), brightness=127 * (i % 2))
        paths.append(tmp_path / f"{i:02}.png")
    paths[3].write_bytes(b"no image")
    predictor = skipway.load(trained.folder)
    results = list(predictor.predict_files(paths, top=2))
    assert [path for path, _ in results] == paths
    assert isinstance(results[3][1], ReadError)
    for path, result in results:
        if isinstance(result, Prediction):
            [want] = predictor.predict(path, top=2)
            assert result.names == want.names
            assert result.probabilities == pytest.approx(want.probabilities, abs=1e-5)


@pytest.mark.faults
def test_a_file_that_hangs_costs_itself_alone(trained, tmp_path, monkeypatch):
    monkeypatch.setitem(Pool.__init__.__kwdefaults__, "time_limit_s", 3)
    save_image(tmp_path / "good.png", 1)
    os.mkfifo(tmp_path / "pipe.png")  # to open it is to wait for a writer
    paths = [tmp_path / "pipe.png", tmp_path / "good.png"]
    (_, hung), (_, good) = skipway.load(trained.folder).predict_files(paths)
    assert isinstance(hung, ReadError)
    assert hung.reason == "took more than 3 s to read"
    assert isinstance(good, Prediction)
