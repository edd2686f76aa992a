"""Detectors: decoding against boxes that are known, and a small ONNX file end to end."""

import json
import sys
import types

import numpy as np
import pytest
import torch

from stagewise.datamodules.errors import DatasetNotFoundError, StagewiseError
from stagewise.lightning_modules.drains.detector_output import decode, letterbox, names_of_metadata, suppress
from stagewise.lightning_modules.drains.detectors import OnnxDetector, UltralyticsDetector, open_detector

TYPES = ["rock_toe", "slope_drain", "toe_drain", "vegetation"]
NINE = ["toe drain", "toe drain blocked", "toe drain damaged", "rock toe", "rock toe damaged",
        "slope drain", "slope drain blocked", "slope drain damaged", "vegetation"]  # fmt: skip


def raw(rows, num_classes, count=20):
    """(1, 4 + C, N) from rows of centre, size, class, score; the rest scores nothing."""
    output = np.zeros((1, 4 + num_classes, count), np.float32)
    for i, (cx, cy, w, h, label, score) in enumerate(rows):
        output[0, :4, i] = cx, cy, w, h
        output[0, 4 + label, i] = score
    return output


def onnx_file(path, outputs, names=None, side=64, shape=None):
    """A detector that finds the same in every picture: its input only adds nothing."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper, numpy_helper

    nodes = [
        helper.make_node("ReduceMean", ["images"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
    ]
    constants = [numpy_helper.from_array(np.zeros((), np.float32), "zero")]
    for i, output in enumerate(outputs):
        constants.append(numpy_helper.from_array(output.astype(np.float32), f"found{i}"))
        nodes.append(helper.make_node("Add", [f"found{i}", "nothing"], [f"output{i}"]))
    graph = helper.make_graph(
        nodes, "detector",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, shape or [1, 3, side, side])],
        [helper.make_tensor_value_info(f"output{i}", TensorProto.FLOAT, list(o.shape)) for i, o in enumerate(outputs)],
        constants,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    if names:
        helper.set_model_props(model, {"names": str(dict(enumerate(names)))})
    onnx.save(model, str(path))
    return path


def test_letterbox_centres_and_keeps_the_aspect():
    picture = torch.zeros(3, 50, 100, dtype=torch.uint8)
    picture[:, 10:20, 30:60] = 255
    boxed, scale, (x, y) = letterbox(picture, (64, 64))
    rows, columns = np.nonzero(boxed[0].numpy() > 200)
    assert boxed.shape == (3, 64, 64) and scale == 0.64 and (x, y) == (0, 16)
    assert [columns.min(), columns.max() + 1] == pytest.approx([30 * scale, 60 * scale], abs=1)
    assert [rows.min(), rows.max() + 1] == pytest.approx([10 * scale + y, 20 * scale + y], abs=1)
    assert (boxed[:, 0] == 114).all() and (boxed[:, -1] == 114).all()


@pytest.mark.parametrize("turned", [False, True])
def test_both_layouts_decode_to_the_same_boxes(turned):
    output = torch.from_numpy(raw([(32, 20, 10, 40, 2, 0.9), (10, 10, 4, 4, 0, 0.4)], 4))
    boxes, scores, classes = decode(output.transpose(1, 2) if turned else output, 4, "it")
    assert boxes[:2].tolist() == [[27, 0, 37, 40], [8, 8, 12, 12]]
    assert scores[:2].tolist() == pytest.approx([0.9, 0.4]) and classes[:2].tolist() == [2, 0]


def test_an_end_to_end_output_decodes_as_it_stands():
    output = torch.zeros(1, 300, 6)
    output[0, 0] = torch.tensor([1.0, 2, 30, 40, 0.8, 3])
    boxes, scores, classes = decode(output, 9, "it")
    assert boxes[0].tolist() == [1, 2, 30, 40] and scores[0].item() == pytest.approx(0.8) and classes[0] == 3
    output[0, 0, 5] = 9
    with pytest.raises(StagewiseError, match="a class beyond the 9"):
        decode(output, 9, "it")


@pytest.mark.parametrize("shape", [(1, 41, 8400), (1, 3, 80, 80, 9), (2, 8, 100), (8, 100)])
def test_another_layout_is_one_error_with_both_shapes(shape):
    with pytest.raises(StagewiseError, match=r"'it' gives \(.*expected \(1, 8, N\) or \(1, N, 8\) for its 4 classes"):
        decode(torch.zeros(shape), 4, "'it'")


def test_suppression_is_by_type_and_the_conditions_of_a_type_compete():
    boxes = torch.tensor([[0.0, 0, 10, 100], [0, 0, 10, 98], [0, 0, 10, 100], [50, 0, 60, 100], [0, 0, 10, 100]])
    scores, classes = torch.tensor([0.6, 0.9, 0.5, 0.7, 0.1]), torch.tensor([0, 1, 8, 0, 1])
    kept = suppress(boxes, scores, classes, NINE, conf=0.25, iou=0.7).tolist()
    assert kept == [1, 3, 2]  # the blocked toe drain beats the normal one; vegetation and the far one stay
    assert suppress(boxes, scores, classes, NINE, conf=0.95, iou=0.7).tolist() == []
    roads = ["road", "fence", *NINE[2:]]
    assert len(suppress(boxes[:2], scores[:2], classes[:2], roads, conf=0.25, iou=0.7)) == 2


def test_names_of_an_export():
    assert names_of_metadata(str(dict(enumerate(TYPES)))) == TYPES
    assert names_of_metadata("nonsense(") == names_of_metadata("{1: 'a'}") == names_of_metadata("[1]") == []


@pytest.mark.parametrize("turned", [False, True])
def test_boxes_of_an_onnx_detector_come_back_in_pixels_of_the_picture(tmp_path, turned):
    # a picture of 200 x 100 becomes 64 x 32, 16 px below the top of the input
    output = raw(
        [(32, 32, 16, 16, 1, 0.9), (32, 32, 16, 15, 1, 0.8), (32, 32, 16, 16, 2, 0.7), (5, 20, 4, 4, 0, 0.2)], 4
    )
    path = onnx_file(tmp_path / "yolo.onnx", [output.transpose(0, 2, 1) if turned else output], TYPES)
    found = open_detector(path).detect(tmp_path / "a.jpg", torch.zeros(3, 100, 200, dtype=torch.uint8))
    assert [(d.type, round(d.score, 3)) for d in found] == [("slope_drain", 0.9), ("toe_drain", 0.7)]
    assert found[0].box == pytest.approx((75, 25, 125, 75), abs=1e-3)
    weak = OnnxDetector(path, conf=0.1, iou=1.0).detect(tmp_path / "a.jpg", torch.zeros(3, 100, 200, dtype=torch.uint8))
    assert len(weak) == 4


def test_the_picture_reaches_the_network_as_rgb_from_0_to_1(tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper, numpy_helper

    # one box whose three class scores are the means of red, green and blue
    nodes = [
        helper.make_node("GlobalAveragePool", ["images"], ["means"]),
        helper.make_node("Reshape", ["means", "shape"], ["scores"]),
        helper.make_node("Concat", ["box", "scores"], ["output"], axis=1),
    ]
    constants = [
        numpy_helper.from_array(np.array([1, 3, 1], np.int64), "shape"),
        numpy_helper.from_array(np.array([16, 16, 8, 8], np.float32).reshape(1, 4, 1), "box"),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, "height", "width"])
    output = helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 7, 1])
    graph = helper.make_graph(nodes, "colours", [images], [output], constants)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(tmp_path / "c.onnx")
    )
    picture = torch.tensor([40, 80, 200], dtype=torch.uint8)[:, None, None].expand(3, 32, 32)
    (found,) = OnnxDetector(tmp_path / "c.onnx", TYPES[:3], px=32).detect(tmp_path / "a.jpg", picture)
    assert found.type == TYPES[2] and found.score == pytest.approx(200 / 255, abs=1e-4)


def test_unknown_types_of_a_detector_are_counted(tmp_path):
    path = onnx_file(tmp_path / "yolo.onnx", [raw([(32, 32, 16, 16, 1, 0.9)], 2)], ["toe drain", "road"])
    detector = OnnxDetector(path)
    assert [d.type for d in detector.detect(path, torch.zeros(3, 64, 64, dtype=torch.uint8))] == ["unknown"]
    assert detector.unknown == {"road": 1}


def test_models_that_are_no_detector_say_so(tmp_path):
    picture = torch.zeros(3, 64, 64, dtype=torch.uint8)
    path = onnx_file(tmp_path / "segment.onnx", [raw([], 4 + 32), np.zeros((1, 32, 16, 16))], TYPES)
    with pytest.raises(StagewiseError, match="gives 2 outputs"):
        OnnxDetector(path).detect(path, picture)
    path = onnx_file(tmp_path / "other.onnx", [raw([], 5)], TYPES)
    with pytest.raises(StagewiseError, match=r"gives \(1, 9, 20\); expected \(1, 8, N\)"):
        OnnxDetector(path).detect(path, picture)
    path = onnx_file(tmp_path / "nameless.onnx", [raw([], 4)])
    with pytest.raises(StagewiseError, match="pass their `names`"):
        OnnxDetector(path)
    path = onnx_file(tmp_path / "logits.onnx", [raw([(32, 32, 16, 16, 1, 7.0)], 4)], TYPES)
    with pytest.raises(StagewiseError, match="scores up to 7"):
        OnnxDetector(path).detect(path, picture)
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    with pytest.raises(StagewiseError, match="no ONNX model"):
        OnnxDetector(tmp_path / "broken.onnx")


@pytest.mark.parametrize("shape", [[1, 1, 64, 64], [4, 3, 64, 64], [1, 64, 64, 3], [1, 3, 4096]])
def test_models_that_do_not_take_one_picture_in_colour_say_so(tmp_path, shape):
    path = onnx_file(tmp_path / "other.onnx", [raw([], 4)], TYPES, shape=shape)
    with pytest.raises(StagewiseError, match=r"other\.onnx' (does not take a picture|takes \[\[1, 3, 4096\]\])"):
        OnnxDetector(path).detect(path, torch.zeros(3, 64, 64, dtype=torch.uint8))


@pytest.mark.parametrize("settings", [{"conf": 2}, {"iou": -0.1}, {"conf": "high"}, {"names": "rock_toe"}, {"maps": 3}])
def test_settings_out_of_range_are_refused_before_a_picture_is_read(tmp_path, settings):
    path = onnx_file(tmp_path / "yolo.onnx", [raw([], 4)], TYPES)
    with pytest.raises(StagewiseError, match=f"`{next(iter(settings))}`"):
        open_detector(path, **settings)


@pytest.mark.parametrize(("library", "detector"), [("onnxruntime", OnnxDetector), ("ultralytics", UltralyticsDetector)])
def test_a_missing_library_names_its_command(tmp_path, monkeypatch, library, detector):
    module = sys.modules[detector.__module__]
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(StagewiseError, match=rf"(?i){library}.*pip install"):
        detector(tmp_path / "model")


def test_ultralytics_gets_blue_first(tmp_path, monkeypatch):
    seen = {}

    class Yolo:
        def __init__(self, path):
            seen["path"] = path

        def predict(self, array, **settings):
            seen.update(array=array, **settings)
            boxes = types.SimpleNamespace(
                xyxy=torch.tensor([[1.0, 2, 30, 40]]), cls=torch.tensor([1.0]), conf=torch.tensor([0.5])
            )
            return [types.SimpleNamespace(boxes=boxes, names={0: "road", 1: "Toe drain"})]

    library = types.ModuleType("ultralytics")
    library.YOLO = Yolo
    monkeypatch.setitem(sys.modules, "ultralytics", library)
    monkeypatch.setattr(sys.modules[UltralyticsDetector.__module__], "find_spec", lambda name: True)
    (tmp_path / "model.pt").write_bytes(b"")
    picture = torch.tensor([10, 20, 30], dtype=torch.uint8)[:, None, None].expand(3, 50, 60)
    (found,) = open_detector(tmp_path / "model.pt", conf=0.3).detect(tmp_path / "a.jpg", picture)
    assert seen["array"].shape == (50, 60, 3) and seen["array"][0, 0].tolist() == [30, 20, 10] and seen["conf"] == 0.3
    assert (found.type, found.score, found.box) == ("toe_drain", 0.5, (1, 2, 30, 40))


def test_a_path_says_which_detector_is_meant(tmp_path):
    (tmp_path / "found.json").write_text(json.dumps([]))
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "a.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    assert type(open_detector(tmp_path / "found.json")).__name__ == "JsonDetections"
    assert type(open_detector(tmp_path / "rows", TYPES)).__name__ == "YoloDetections"
    with pytest.raises(DatasetNotFoundError, match="no detections at"):
        open_detector(tmp_path / "nowhere")
    with pytest.raises(StagewiseError, match=r"\['conf'\] are settings of a model"):
        open_detector(tmp_path / "found.json", conf=0.5)
    (tmp_path / "model.tflite").write_bytes(b"")
    with pytest.raises(StagewiseError, match="no source of detections"):
        open_detector(tmp_path / "model.tflite")
