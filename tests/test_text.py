"""The text encoder beside transformers' own, which reads the same files."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from threed.distill.folder import SHIPPED, UnreadablePrior, restore
from threed.distill.text import TextReader, load_tokenizer, normalized, pieces

PROMPTS = ["a wooden barrel", "", " A small GREEN pine-tree, in the snow! ", "人 café 🙂", "barrel " * 40]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Another BERT than the shipped one: of three layers, and not compressed."""
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    shape = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 80}
    BertModel(BertConfig(**shape), add_pooling_layer=False).save_pretrained(folder / "text_encoder")
    shutil.copytree(SHIPPED / "tokenizer", folder / "tokenizer")
    return folder


def theirs(folder, limit, prompts):
    """States and mask by transformers."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer", local_files_only=True)
    found = tokenizer(
        [normalized(prompt) for prompt in prompts],
        padding="max_length",
        truncation=True,
        max_length=limit,
        return_tensors="pt",
    )
    config = BertConfig.from_pretrained(folder / "text_encoder")
    encoder = BertModel(config, add_pooling_layer=False).eval()
    encoder.load_state_dict(restore(load_file(folder / "text_encoder" / "model.safetensors")))
    with torch.no_grad():
        states = encoder(input_ids=found.input_ids, attention_mask=found.attention_mask).last_hidden_state
    return states, found.attention_mask


@pytest.mark.parametrize("limit", [6, 16])
@pytest.mark.parametrize("shipped", [True, False], ids=["shipped", "another"])
def test_as_transformers_has_it(folder, shipped, limit):
    """Every token, of empty prompts and too long ones too, and the mean over the real ones."""
    folder = SHIPPED if shipped else folder
    found = TextReader.load(folder, limit)(PROMPTS)
    states, mask = theirs(folder, limit, PROMPTS)
    torch.testing.assert_close(found.tokens, states, rtol=1e-5, atol=1e-5)
    means = [states[k, : mask[k].sum()].mean(0) for k in range(len(PROMPTS))]
    torch.testing.assert_close(found.mean, torch.stack(means), rtol=1e-5, atol=1e-5)


def test_what_is_not_real_changes_nothing(folder):
    short, long = (TextReader.load(folder, limit)(["a wooden barrel"]) for limit in (5, 20))
    torch.testing.assert_close(long.tokens[:, :5], short.tokens)
    torch.testing.assert_close(long.mean, short.mean)


def test_pieces_are_counted_with_both_markers():
    tokenizer = load_tokenizer(SHIPPED)
    counts = [
        len(pieces(tokenizer, prompt)) for prompt in ("a wooden barrel", "", " a WOODEN barrel\n", "barrel " * 40)
    ]
    assert counts == [5, 2, 5, 42]


def test_features_and_device(folder):
    reader = TextReader.load(folder, 16)
    assert (reader.features, reader.device) == (48, torch.device("cpu"))


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"hidden_act": "relu"}, "hidden_act is 'relu', this program knows 'gelu'"),
        ({"model_type": "roberta"}, "model_type is 'roberta'"),
        ({"num_hidden_layers": 9}, "cannot use .*model.safetensors: 'encoder.layer.3.attention.self.query.weight'"),
    ],
)
def test_another_encoder_is_refused(folder, tmp_path, told, message):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "text_encoder" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | told))
    with pytest.raises(UnreadablePrior, match=message):
        TextReader.load(tmp_path, 16)


def test_files_at_fault_are_named(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / "text_encoder" / "model.safetensors")
    del weights["embeddings.LayerNorm.bias"]
    save_file(weights, tmp_path / "text_encoder" / "model.safetensors")
    with pytest.raises(UnreadablePrior, match=r"model.safetensors: 'embeddings.LayerNorm.bias'"):
        TextReader.load(tmp_path, 16)
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("{}")
    with pytest.raises(UnreadablePrior, match=r"cannot use .*tokenizer.json"):
        TextReader.load(tmp_path, 16)
    (tmp_path / "tokenizer" / "tokenizer.json").unlink()
    with pytest.raises(UnreadablePrior, match=r"tokenizer.json.*copy the prior's folder again"):
        TextReader.load(tmp_path, 16)
