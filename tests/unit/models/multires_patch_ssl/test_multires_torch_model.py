"""MultiResPatchSSL's torch model against the definition, step by step."""

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from anomalib_cxr.models.components.patch_encoder import PatchEncoder
from anomalib_cxr.models.multires_patch_ssl.torch_model import PAPER_WEIGHTS, MultiResPatchSSLModel


def build(**options):
    torch.manual_seed(0)
    options = {"patch_sizes": (16, 32), "backbone": "test_resnet", "distance": "euclidean"} | options
    return MultiResPatchSSLModel(**options).eval()


def images(n=6, size=(48, 64), seed=0, channels=3):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, 1, 6, 8, generator=generator)
    return F.interpolate(coarse, size, mode="bilinear").expand(-1, channels, -1, -1).clone()


@pytest.fixture(scope="module")
def fitted():
    model = build()
    with torch.no_grad():
        model.fit(model.features(images()))
    return model


@torch.no_grad()
def test_crops_are_encoded_one_by_one(fitted):
    image = images(2)
    for size, stride, found in zip((16, 32), (16, 32), fitted.features(image), strict=True):
        encoder = fitted.encoder(0 if size == 16 else 1)
        tops = [*range(0, 48 - size + 1, stride)] + ([48 - size] if (48 - size) % stride else [])
        lefts = [*range(0, 64 - size + 1, stride)]
        assert found.shape[:3] == (2, len(tops), len(lefts))
        for i, top in enumerate(tops):
            for j, left in enumerate(lefts):
                patch = image[1:, :1, top : top + size, left : left + size]
                alone = encoder.model((patch - 0.5) / 0.5)[0]
                torch.testing.assert_close(found[1, i, j], alone, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_fused_map_is_the_weighted_mean_of_standardised_distances():
    training, query = images(), images(2, seed=1)
    model = build(weights=(3.0, 1.0))
    features = model.features(training)
    model.fit(features)
    fused = 0
    for i, weight in enumerate((3.0, 1.0)):
        bank, asked = features[i].double().numpy(), model.features(query)[i].double().numpy()
        n, rows, cols, _ = bank.shape

        def nearest(x, row, col, bank=bank, without=None):
            near = [
                np.linalg.norm(x - bank[m, r, c])
                for m in range(len(bank))
                if m != without
                for r in range(max(0, row - 1), min(bank.shape[1], row + 2))
                for c in range(max(0, col - 1), min(bank.shape[2], col + 2))
            ]
            return min(near)

        own = [nearest(bank[m, r, c], r, c, without=m) for m, r, c in np.ndindex(n, rows, cols)]
        score = np.array([nearest(asked[b, r, c], r, c) for b, r, c in np.ndindex(2, rows, cols)])
        standard = torch.from_numpy((score.reshape(2, rows, cols) - np.mean(own)) / np.std(own))
        fused = fused + weight / 4.0 * model.grid(i, (48, 64)).spread(standard)
    batch = model(query)
    torch.testing.assert_close(batch.anomaly_map.double(), fused, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(batch.pred_score, batch.anomaly_map.flatten(1).max(1).values)


@torch.no_grad()
def test_top_q_score_is_the_mean_of_the_highest_pixels(fitted):
    query = images(3, seed=2)
    expected = fitted(query).anomaly_map.flatten(1).numpy()
    expected = np.sort(expected, axis=1)[:, -round(0.1 * 48 * 64) :].mean(1)
    model = build(score="top_q", top_q=0.1)
    model.load_state_dict(fitted.state_dict())
    np.testing.assert_allclose(model(query).pred_score.numpy(), expected, rtol=1e-5)


@torch.no_grad()
def test_a_changed_region_is_marked_and_its_neighbours_are_explained(fitted):
    training = images()
    query = training[:1].clone()
    query[:, :, 16:32, 32:48] = torch.rand(16, 16, generator=torch.Generator().manual_seed(5))
    batch = fitted(query)
    peak = divmod(batch.anomaly_map.argmax().item(), 64)
    assert 16 <= peak[0] < 32
    assert 32 <= peak[1] < 48
    small = fitted.nearest_references(query)[0]
    assert small.patch_size == 16
    # Untouched patches find themselves, the changed one does not.
    untouched = torch.ones(3, 4, dtype=torch.bool)
    untouched[1, 2] = False
    rows, cols = torch.meshgrid(torch.arange(3), torch.arange(4), indexing="ij")
    assert (small.distance[0][untouched] < 1e-5).all()
    assert (small.image[0][untouched] == 0).all()
    assert torch.equal(small.row[0][untouched], rows[untouched])
    assert torch.equal(small.col[0][untouched], cols[untouched])
    assert small.distance[0, 1, 2] > 1e-2


def test_explanations_carry_no_graph_and_want_evaluation_mode(fitted):
    query = images(1, seed=6)
    assert fitted.maps(query).requires_grad  # so the encoder would give one
    assert not any(match.distance.requires_grad for match in fitted.nearest_references(query))
    model = build()
    model.load_state_dict(fitted.state_dict())
    with pytest.raises(RuntimeError, match=r"is in training mode, .*: call eval\(\) first"):
        model.train().nearest_references(query)


@torch.no_grad()
def test_three_channels_count_as_their_mean(fitted):
    coloured = torch.rand(2, 3, 48, 64)
    torch.testing.assert_close(
        fitted(coloured).anomaly_map, fitted(coloured.mean(1, keepdim=True)).anomaly_map, rtol=1e-4, atol=1e-4
    )


@torch.no_grad()
def test_map_features_are_box_means_of_the_levels():
    model = build(features="map", patch_sizes=(32,), layers=(1, 2))
    image = images(1, (64, 64))
    levels = model.encoder(0).model.forward_intermediates((image[:, :1] - 0.5) / 0.5, intermediates_only=True)
    parts = [F.normalize(F.adaptive_avg_pool2d(levels[level], 2), dim=1) for level in (1, 2)]
    expected = torch.cat(parts, 1).permute(0, 2, 3, 1)
    torch.testing.assert_close(model.features(image)[0], expected, rtol=1e-5, atol=1e-6)
    single = build(features="map", patch_sizes=(32,), layers=(1,)).features(image)[0]
    torch.testing.assert_close(single, F.adaptive_avg_pool2d(levels[1], 2).permute(0, 2, 3, 1), rtol=1e-5, atol=1e-6)


def test_embedding_trains_encoder_and_head_of_its_size_only():
    model = build().train()
    model.embed(torch.rand(4, 1, 32, 32), 1).square().sum().backward()
    assert all(p.grad is not None for m in (model.encoders[1], model.heads[1]) for p in m.parameters())
    assert all(p.grad is None for m in (model.encoders[0], model.heads[0]) for p in m.parameters())


@torch.no_grad()
def test_encoder_size_resizes_patches():
    encoder = PatchEncoder("test_resnet", encoder_size=16).eval()
    patches = torch.rand(2, 1, 32, 32)
    small = F.avg_pool2d(patches, 2)
    torch.testing.assert_close(encoder(patches), encoder(small), rtol=1e-4, atol=1e-5)
    large = F.interpolate(torch.rand(2, 1, 8, 8), size=(16, 16), mode="bilinear")
    assert encoder(large).shape == (2, encoder.num_features)


@pytest.mark.parametrize("in_chans", [1, 3])
@torch.no_grad()
def test_local_weights_are_loaded_with_the_normalisation_they_want(in_chans, tmp_path):
    # This model's configuration asks for ImageNet's mean and standard deviation.
    reference = timm.create_model("test_efficientnet").eval()
    save_file(reference.state_dict(), tmp_path / "weights.safetensors")
    encoder = PatchEncoder("test_efficientnet", in_chans, weights_path=tmp_path / "weights.safetensors").eval()
    patches = torch.rand(2, 1, 32, 32)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    if in_chans == 1:
        mean, std = mean.mean().expand(3), std.mean().expand(3)
    colour = (patches.expand(-1, 3, -1, -1) - mean[:, None, None]) / std[:, None, None]
    expected = reference.forward_head(reference.forward_features(colour), pre_logits=True)
    torch.testing.assert_close(encoder(patches), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_several_encoders_of_one_size_give_the_mean_of_their_standardised_maps():
    training, query = images(size=(64, 64)), images(2, (64, 64), seed=1)
    names, same = ("test_resnet", "test_vit", "test_efficientnet"), {"features": "map", "image_size": (64, 64)}
    several = build(patch_sizes=(16, 16, 16), backbone=names, **same)
    several.fit(several.features(training))
    expected = 0
    for i, name in enumerate(names):
        alone = build(patch_sizes=(16,), backbone=name, **same)
        alone.encoders[0].load_state_dict(several.encoders[i].state_dict())
        alone.fit(alone.features(training))
        expected = expected + alone(query).anomaly_map / 3
    torch.testing.assert_close(several(query).anomaly_map, expected, rtol=1e-4, atol=1e-4)
    assert several.map_names == tuple(f"16 px, {name}" for name in names)
    twice = build(patch_sizes=(16, 32, 16), backbone=["test_vit"] * 3, features="map", image_size=(64, 64))
    assert twice.map_names == ("16 px, test_vit (1)", "32 px, test_vit (2)", "16 px, test_vit (3)")


@torch.no_grad()
def test_each_encoder_has_its_own_file_and_grey_values(tmp_path):
    states = []
    for i in (0, 1):
        torch.manual_seed(i)
        states.append(timm.create_model("test_resnet", in_chans=1).state_dict())
        save_file(states[i], tmp_path / f"{i}.safetensors")
    files = [tmp_path / "0.safetensors", tmp_path / "1.safetensors"]
    grey = {"mean": [0.2, None], "std": (0.5, 0.25), "input_range": [None, (-1, 1)]}
    model = build(patch_sizes=(16, 16), backbone=["test_resnet"] * 2, weights_path=files, **grey)
    for i, (mean, std) in enumerate(((0.2, 0.5), (0.75, 0.125))):
        torch.testing.assert_close(model.encoders[i].model.conv1[0].weight, states[i]["conv1.0.weight"])
        assert (model.encoders[i].mean.item(), model.encoders[i].std.item()) == pytest.approx((mean, std), abs=0.02)
    both = build(patch_sizes=(16, 32), mean=0.0, std=1.0, input_range=(-3, 1))
    assert [encoder.mean.item() for encoder in both.encoders] == [0.75, 0.75]


@torch.no_grad()
def test_a_transformer_encodes_patches_of_each_size():
    model = build(backbone="test_vit", patch_sizes=(16, 32))
    image = images(1)
    last_rows = (image[:, :1, 32:, :16], image[:, :1, 16:, :32])
    for i, (found, patch) in enumerate(zip(model.features(image), last_rows, strict=True)):
        network = model.encoder(i).model
        assert network.pos_embed.shape[1] == 1 + (i + 1) ** 2
        torch.testing.assert_close(found[0, -1, 0], network(2 * patch - 1)[0], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_weights_and_banks_load_into_a_fresh_model(fitted, tmp_path):
    torch.save(fitted.state_dict(), tmp_path / "state.pt")
    model = build()
    model.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    query = images(2, seed=3)
    assert torch.equal(model(query).anomaly_map, fitted(query).anomaly_map)


@torch.no_grad()
def test_statistics_come_from_the_stated_number_of_images():
    training = images(8)
    few, all_ = build(patch_sizes=(16,), statistics_images=3), build(patch_sizes=(16,), statistics_images=8)
    features = few.features(training)
    for model in (few, all_):
        model.fit(features)
    chosen = torch.randperm(8, generator=torch.Generator().manual_seed(0))[:3]
    distance = few.banks[0](features[0][chosen], chosen)[0]
    torch.testing.assert_close(few.score_mean[0], distance.mean())
    torch.testing.assert_close(few.score_std[0], distance.std(correction=0))
    assert few.score_mean[0] != all_.score_mean[0]


@pytest.mark.parametrize("distance", ["euclidean", "manhattan", "cosine", "mahalanobis", "whitened_cosine"])
@torch.no_grad()
def test_constant_images_score_zero(distance):
    model = build(distance=distance)
    model.fit(model.features(torch.full((3, 1, 48, 64), 0.5)))
    batch = model(torch.full((2, 1, 48, 64), 0.5))
    torch.testing.assert_close(batch.anomaly_map, torch.zeros(2, 1, 48, 64))
    assert model(images(2)).anomaly_map.isfinite().all()


@torch.no_grad()
def test_autocast_changes_encoders_but_not_the_standardising(fitted):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        batch = fitted(images(2))
    assert batch.anomaly_map.dtype == torch.float32


def test_expected_bank_bytes_are_those_of_the_banks(fitted):
    held = [
        sum(getattr(bank.search, name).nbytes for name in ("references", "image_index", "half_norms"))
        for bank in fitted.banks
    ]
    assert fitted.expected_bank_bytes(6, (48, 64)) == held


def test_four_sizes_get_the_papers_weights():
    assert build(patch_sizes=(4, 8, 16, 32)).weights == PAPER_WEIGHTS
    assert build(patch_sizes=(8, 16, 32)).weights == (1, 1, 1)


def test_a_shared_encoder_is_one_module():
    assert len(build(shared_encoder=True).encoders) == 1
    assert len(build().encoders) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch_sizes": ()}, "one or more different"),
        ({"patch_sizes": (16, 16)}, "one or more different sizes, unless `backbone` lists"),
        ({"weights_path": ["a.pth"]}, "`weights_path` needs one entry for each of the 2"),
        ({"backbone": ["test_resnet", "test_vit"], "shared_encoder": True}, "A shared encoder needs one `backbone`"),
        ({"strides": (8,)}, "`strides` needs one entry for each of the 2"),
        ({"weights": (1.0,)}, "`weights` needs 2 numbers"),
        ({"weights": (0.0, 0.0)}, "not all 0"),
        ({"weights": (-1.0, 2.0)}, "none negative"),
        ({"features": "pixels"}, "features must be one of 'crops', 'map'"),
        ({"score": "mean"}, "score must be one of 'max', 'top_q'"),
        ({"top_q": 0.0}, "top_q"),
        ({"backbone": "no_such_model"}, "timm knows no model"),
        ({"layers": (7,)}, "must name some of the 5 levels"),
        ({"in_chans": 2}, "must be 1 or 3"),
        ({"weights_path": "/no/such/file.pth"}, "no weights file"),
        ({"shared_encoder": True, "encoder_size": (8, 16)}, "shared encoder"),
        ({"patch_distance": (1, 2, 3)}, "`patch_distance` needs one entry"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


@torch.no_grad()
def test_impossible_images_are_refused(fitted):
    with pytest.raises(ValueError, match="does not fit into an image of 24x64"):
        fitted(torch.rand(1, 1, 24, 64))
    with pytest.raises(ValueError, match="do not fit the bank's grid"):
        fitted(torch.rand(1, 1, 64, 64))
    with pytest.raises(ValueError, match="bank is empty: fit it"):
        build()(images(1))
    model = build()
    with pytest.raises(ValueError, match="at least two normal training images, got 1"):
        model.fit(model.features(images(1)))
    model.banks[0].search.patch_distance = 0
    features = model.features(images(2))
    with pytest.raises(ValueError, match="reference from another image"):
        model.fit(features, torch.tensor([4, 4]))


def test_export_runs_the_whole_chain_in_onnx_runtime(tmp_path):
    model = build(
        patch_sizes=(24, 32), strides=(12, 32), distance="mahalanobis", score="top_q", encoder_size=16, feature_dim=20
    )
    with torch.no_grad():
        model.fit(model.features(images(5)))
    query = images(3, seed=4)
    torch.onnx.export(
        model,
        (query[:2],),
        tmp_path / "model.onnx",
        dynamo=True,
        opset_version=18,
        dynamic_shapes={"image": {0: torch.export.Dim("batch")}},
        verbose=False,
    )
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for batch in (1, 3):
        score, anomaly_map = session.run(None, {"image": query[:batch].numpy()})
        with torch.no_grad():
            expected = model(query[:batch])
        np.testing.assert_allclose(score, expected.pred_score.numpy(), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(anomaly_map, expected.anomaly_map.numpy(), rtol=1e-4, atol=1e-4)
