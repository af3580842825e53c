"""The heat map against autograd, and which backbones are refused."""

import pytest
import torch

from anomalib_cxr.models.anat_paste.torch_model import AnatPasteModel, enlarge


def _model(num_classes: int = 2, head_layers: int = 2, backbone: str = "resnet18") -> AnatPasteModel:
    torch.manual_seed(0)
    model = AnatPasteModel(backbone, head_layers=head_layers, num_classes=num_classes)
    for module in model.modules():  # batch-norm statistics and weights that are not 0 and 1
        if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.1, 0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.bias, -0.2, 0.2)
    return model.eval()


@pytest.mark.parametrize(
    ("num_classes", "head_layers", "backbone"), [(2, 1, "resnet18"), (3, 0, "resnet18"), (2, 3, "efficientnet_b0")]
)
def test_grad_cam_equals_autograd(num_classes: int, head_layers: int, backbone: str) -> None:
    model = _model(num_classes, head_layers, backbone)
    images = torch.rand(3, 3, 96, 64)
    with torch.no_grad():
        ours = model.grad_cam(features := model.features(images), features.mean(dim=(2, 3)))
    for i in range(3):
        feature = features[i : i + 1].clone().requires_grad_()
        logits = model.classifier(model.head(feature.mean(dim=(2, 3))))[0]
        (logits[1:].mean() - logits[0]).backward()
        weights = feature.grad.mean(dim=(2, 3), keepdim=True)
        expected = (weights * feature.detach()).sum(dim=1)[0]
        assert expected.abs().max() > 1e-6
        torch.testing.assert_close(ours[i, 0], expected, rtol=1e-4, atol=1e-7)


def test_forward_gives_raw_score_and_full_size_map() -> None:
    model = _model()
    images = torch.rand(5, 3, 64, 96)
    model.fit(*model.embed_with_cams(images[:4]))
    with torch.no_grad():
        out = model(images)
        one_by_one = torch.cat([model(image[None]).pred_score for image in images])
    assert out.anomaly_map.shape == (5, 1, 64, 96)
    torch.testing.assert_close(out.pred_score, one_by_one, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out.pred_score, model.density(model.embed(images)))


def test_maps_of_the_training_images_average_to_nothing() -> None:
    model = _model()
    images = torch.rand(6, 3, 64, 96)
    with torch.no_grad():
        cams = [model.grad_cam(f := model.features(image[None]), f.mean(dim=(2, 3)))[0, 0] for image in images]
        model.fit(*model.embed_with_cams(images))
        drawn = model(images).anomaly_map
        other = model(torch.rand(1, 3, 128, 96)).anomaly_map
    mean = sum(cams) / 6
    assert mean.abs().max() > 1e-3
    for cam, shown in zip(cams, drawn, strict=True):
        torch.testing.assert_close(shown, enlarge((cam - mean)[None, None], 64, 96)[0], rtol=1e-3, atol=1e-4)
    assert torch.isfinite(other).all()


def test_fine_map_is_the_mean_over_moved_images() -> None:
    model = _model()
    model.fine_map = True
    images = torch.rand(3, 1, 64, 96)
    with torch.no_grad():
        model.fit(*model.embed_with_cams(images[:2]))
        drawn = model(images[2:]).anomaly_map[0, 0]
        model.fine_map = False
        expected = []
        for down, right in ((0, 0), (16, 0), (0, 16), (16, 16)):  # cells of 32 pixels
            rows, columns = (torch.arange(64) - down).clamp(min=0), (torch.arange(96) - right).clamp(min=0)
            moved = images[:, :, rows][:, :, :, columns]
            model.fit(*model.embed_with_cams(moved[:2]))
            map_of_moved = model(moved[2:]).anomaly_map[0, 0]
            rows, columns = (torch.arange(64) + down).clamp(max=63), (torch.arange(96) + right).clamp(max=95)
            expected.append(map_of_moved[rows][:, columns])
    torch.testing.assert_close(drawn, torch.stack(expected).mean(0), rtol=1e-4, atol=1e-5)


def test_grey_in_three_channels_equals_one() -> None:
    model = _model()
    grey = torch.rand(2, 1, 64, 64)
    torch.testing.assert_close(model.embed(grey.expand(-1, 3, -1, -1)), model.embed(grey))


@pytest.mark.parametrize("backbone", ["vit_tiny_patch16_224", "convnext_atto", "mobilenetv3_small_050"])
def test_other_pooling_is_refused_by_name(backbone: str) -> None:
    with pytest.raises(ValueError, match=f"Backbone {backbone} does not end in plain average pooling"):
        AnatPasteModel(backbone)


def test_unknown_backbone_is_refused() -> None:
    with pytest.raises(ValueError, match="timm knows no model 'resnet19x'"):
        AnatPasteModel("resnet19x")


def test_residual_branches_start_open() -> None:
    norms = [module for module in AnatPasteModel("resnet18").modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert len(norms) == 20
    assert all(torch.equal(norm.weight, torch.ones_like(norm.weight)) for norm in norms)


def test_enlarged_map_keeps_place_and_range_and_falls_at_the_rim() -> None:
    cam = torch.zeros(2, 1, 4, 4)
    cam[0, 0, 1, 2] = 3.0  # an inner cell, of rows 32 … 63 and columns 64 … 95
    cam[1, 0, 0, 0] = 3.0  # a corner cell
    cam -= 1.0
    large = enlarge(cam, 128, 128)
    assert large.shape == (2, 1, 128, 128)
    assert large.min() == -1.0
    plain = torch.nn.functional.interpolate(cam, size=(128, 128), mode="bilinear", align_corners=False)
    torch.testing.assert_close(large[0, :, 16:112, 16:112], plain[0, :, 16:112, 16:112])
    row, column = divmod(int(large[1].argmax()), 128)
    assert 14 <= row <= 17
    assert 14 <= column <= 17
    assert large[1, 0, 0, 0] < 0.0 < plain[1, 0, 0, 0]
