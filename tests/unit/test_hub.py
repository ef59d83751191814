"""What is said where a model of the hub cannot be had, without asking the hub."""

from __future__ import annotations

import pytest

from nanogen import hub
from nanogen.errors import ConfigError

huggingface_hub = pytest.importorskip("huggingface_hub")
errors = pytest.importorskip("huggingface_hub.errors")

FIELD = "tokenizer.model"


class Gated(errors.GatedRepoError):
    def __init__(self) -> None:
        Exception.__init__(self, "403 Client Error.\nAccess to model some/model is restricted.")


class Unknown(errors.RepositoryNotFoundError):
    def __init__(self) -> None:
        Exception.__init__(self, "401 Client Error.")


@pytest.fixture
def answer(monkeypatch):
    """Set what the hub answers, and whether the file is in the cache."""

    def set_answer(problem, cached=None):
        def ask(url, timeout):
            assert url == "https://huggingface.co/some/model/resolve/main/vae/config.json"
            if problem:
                raise problem

        monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", ask)
        monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: cached)

    return set_answer


def locate(**fields):
    return hub.locate("some/model", "vae", "config.json", field=FIELD, **fields)


def refused(match, **fields):
    with pytest.raises(ConfigError, match=match) as problem:
        locate(**fields)
    assert "\n" not in str(problem.value)


def test_a_model_of_the_hub(answer):
    answer(None)
    assert locate() == hub.Source("some/model", "vae", local=False)


def test_a_gated_one_names_its_page_the_login_and_the_folder(answer):
    terms = "accept its terms at https://huggingface.co/some/model and log in with: hf auth login"
    folder = f"or set {FIELD} to a folder"
    answer(Gated())
    refused(f"^some/model is gated: {terms}; {folder}")
    for problem in (Unknown(), OSError("no network")):
        answer(problem)
        refused(f"it is gated: {terms}; {folder}", gated=True)


def test_an_unknown_one(answer):
    answer(Unknown())
    refused(f"the hub has no 'some/model' that you may read; .*or set {FIELD} to a folder")


def test_without_a_network_the_cache_serves(answer):
    answer(OSError("[Errno -2] Name or service not known"))
    refused(r"huggingface.co does not answer \(\[Errno -2\] Name or .*or set tokenizer.model")
    answer(OSError("no network"), cached="/cache/config.json")
    assert locate() == hub.Source("some/model", "vae", local=True)


def test_folders(tmp_path):
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").touch()
    where = hub.Source(str(tmp_path / "vae"), "", local=True)
    for model, subfolder in ((tmp_path, "vae"), (tmp_path / "vae", "")):
        assert hub.locate(str(model), subfolder, "config.json", field=FIELD) == where
    with pytest.raises(ConfigError, match="holds no folder 'vea'; correct .* or leave it out"):
        hub.locate(str(tmp_path), "vea", "config.json", field=FIELD)
    for missing in (tmp_path / "none", "./none", "~/none-such", "a/b/c"):
        with pytest.raises(ConfigError, match="no such folder"):
            hub.locate(str(missing), "", "config.json", field=FIELD)


def test_advice_sees_through_what_libraries_wrap(tmp_path):
    try:
        try:
            raise Gated()
        except Gated as inner:
            raise OSError("some/model is not a valid model identifier") from inner
    except OSError as wrapped:
        problem = wrapped
    assert hub.advice("some/model", problem, FIELD).startswith("some/model is gated")
    line = hub.advice(str(tmp_path), ValueError("bad\nworse"), FIELD, "text encoder")
    fix = "give another folder, or get the files anew"
    assert line == f"{tmp_path} holds no text encoder: bad; {fix}"
    assert hub.reason(ValueError()) == "ValueError"
    assert len(hub.reason(ValueError("x" * 999))) == hub.LONGEST
