"""node.yaml: what is wrong with it is said in one sentence that names the place."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from anomalib_cxr.node.__main__ import main
from anomalib_cxr.node.configuration import Configuration, load
from anomalib_cxr.node.settings import ConfigurationError

DESTINATION = {"name": "a", "ae_title": "A", "host": "h", "port": 104}


def test_paths_are_relative_to_the_file(configured: Callable[..., Configuration], tmp_path: Path) -> None:
    found = configured(page={"port": 8000}, rules=[{"modality": ["CR"]}])
    assert found.folder == tmp_path / "node"
    assert found.models[0].path == tmp_path / "model" / "model.onnx"
    assert found.receive.host == "127.0.0.1"
    assert found.page is not None
    assert (found.page.host, found.page.port) == ("127.0.0.1", 8000)
    assert found.rules[0].modality == ("CR",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"folder": None}, r"node\.yaml\.folder must be a path, not None\."),
        ({"modells": []}, r"node\.yaml: the name must be one of .*, not 'modells': did you mean 'models'\?"),
        ({"models": []}, r"node\.yaml: models is empty"),
        ({"models": {"a": 1}}, r"node\.yaml\.models must be a list, not"),
        ({"models": [{"name": "a"}]}, r"node\.yaml\.models\[0\]\.path is missing: state it\."),
        ({"models": [{"name": "a", "path": "p", "rate": 2}]}, r"models\[0\]\.rate must lie in 1e-06 to 0\.999999"),
        ({"models": [{"name": "a", "path": "p", "rate": float("nan")}]}, r"rate must lie in"),
        ({"models": [{"name": "a", "path": "p"}, {"name": "a", "path": "q"}]}, "models has 'a' twice"),
        ({"models": [{"name": "a", "path": "p", "precision": "f16"}]}, r"models\[0\]\.precision must be one of"),
        ({"receive": {"ae_title": "N", "calling": []}}, "calling is empty"),
        ({"receive": {"ae_title": "N", "calling": ["A\\B"]}}, r"receive: 'A\\\\B' is no AE title"),
        ({"receive": {"ae_title": "SEVENTEEN_LETTERS", "calling": ["A"]}}, "is no AE title"),
        ({"receive": {"ae_title": "N", "calling": "A"}}, r"receive\.calling must be a list"),
        ({"receive": {"ae_title": "N", "calling": ["A"], "port": True}}, r"port must be a whole number, not True"),
        ({"receive": {"ae_title": "N", "calling": ["A"], "port": 70000}}, r"port must lie in 0 to 65535"),
        ({"receive": {"ae_title": "N", "calling": ["A"], "tls": {}}}, "TLS of a listener needs certificate and key"),
        ({"receive": {"ae_title": "N", "calling": ["A"], "tls": {"key": "k"}}}, "certificate and key belong together"),
        ({"destinations": [{"name": "a"}]}, r"destinations\[0\]: a destination has either"),
        ({"destinations": [DESTINATION | {"web": {"url": "http://h"}}]}, "a destination has either"),
        ({"destinations": [{"name": "a", "web": {"url": "ftp://h"}}]}, "url must begin with http"),
        ({"destinations": [{"name": "a", "web": {"url": "http://h", "user": "u"}}]}, "belong together"),
        ({"destinations": [DESTINATION], "results": []}, "results is empty"),
        ({"results": ["captures"]}, r"results\[0\] must be one of .*: did you mean 'capture'\?"),
        ({"page": {"host": "0.0.0.0"}}, r"page: a page at 0\.0\.0\.0 can be reached from other machines"),
        ({"retention_days": -1}, "retention_days must lie in"),
    ],
)
def test_mistakes(configured: Callable[..., Configuration], change: dict, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        configured(**change)


def test_the_command_says_what_is_wrong(settings: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "node.yaml"

    def said(content: str) -> str:
        path.write_text(content)
        assert main(["--config", str(path), "--check"]) == 2
        return capsys.readouterr().err

    assert "node.yaml cannot be read as YAML" in said("a: [")
    assert "node.yaml must be a list of names with values, not None." in said("")
    other = settings | {"models": [{"name": "gone", "path": "gone.onnx"}]}
    assert "Model 'gone' cannot be used: " in said(yaml.safe_dump(other))
    twice = settings | {"models": [{"name": name, "path": "model/model.onnx"} for name in "ab"]}
    assert "Models 'a' and 'b' are one file" in said(yaml.safe_dump(twice))
    path.write_text(yaml.safe_dump(settings))
    assert main(["--config", str(path), "--check"]) == 0
    assert load(path).receive.ae_title == "NODE"
