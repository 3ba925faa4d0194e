"""The figures of T3Bench's prompts, with a tiny CLIP of random weights; transformers itself says what it sees."""

import json
import sys
from pathlib import Path

import pytest
import torch
from tiny_assets import COLOURS, box
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks" / "t3bench"))

import run
from sight import MEAN, SPREAD, Sight

from threed.errors import Mistake
from threed.exporters import export
from threed.pictures import portraits
from threed.renderers.camera import orbit
from threed.rows import misnamed, read

PROMPTS = ["a red box", "a green barrel", "two boxes"]


def write(folder: Path) -> None:
    """Random weights, pictures of 16 pixels, a word a token."""
    words = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[EOS]", *" ".join(PROMPTS).split()])}
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    last = tokenizer.token_to_id("[EOS]")
    tokenizer.post_processor = processors.TemplateProcessing(single="$A [EOS]", special_tokens=[("[EOS]", last)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", eos_token="[EOS]"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = small | {"vocab_size": len(words), "max_position_embeddings": 8, "eos_token_id": last, "bos_token_id": 1}
    config = CLIPConfig(
        text_config=text | {"pad_token_id": 0},
        vision_config=small | {"image_size": 16, "patch_size": 8},
        projection_dim=8,
    )
    CLIPModel(config).save_pretrained(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    write(folder)
    return folder


def test_cosines_are_what_transformers_says(folder: Path) -> None:
    sight = Sight.load(folder)
    assert sight.size == 16
    pictures = torch.rand(40, 16, 16, 3, generator=torch.Generator().manual_seed(0))
    found = sight.cosines(pictures, PROMPTS)
    pixels = (pictures.movedim(-1, 1) - torch.tensor(MEAN)[:, None, None]) / torch.tensor(SPREAD)[:, None, None]
    told = sight.model(**sight.tokenizer(PROMPTS, padding=True, return_tensors="pt"), pixel_values=pixels)
    torch.testing.assert_close(found, told.logits_per_image / sight.model.logit_scale.exp())
    assert found.std(dim=1).min() > 1e-4  # and prompts differ


def test_scores_of_what_is_known() -> None:
    cosines = torch.tensor([[0.3, 0.1, 0.2], [0.1, 0.2, 0.4], [0.0, 0.5, 0.1], [0.1, 0.4, 0.0]])
    found = run.scores(cosines, torch.tensor([0, 0, 1, 1]), share=2 / 3)
    assert found == {"clip_score": pytest.approx(32.5), "r_precision": pytest.approx(50.0)}


def test_a_folder_that_is_no_clip(tmp_path: Path) -> None:
    with pytest.raises(Mistake, match="cannot use the CLIP model"):
        Sight.load(tmp_path)


def test_the_list_is_one_for_the_batch(tmp_path: Path) -> None:
    long = "a cat, a dog and a bird that sit beside one another on "
    prompts = [long + "a bench", long + "a table", 'the "last" one']
    rows = read(run.listed(tmp_path / "deep" / "single.csv", prompts))
    assert [row.cells["prompt"] for row in rows] == prompts
    assert [row.name for row in rows] == run.names(prompts)
    assert misnamed(rows) == {}


def test_three_prompts_become_figures(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """One of each kind, through a batch that makes boxes of one colour."""
    asked = []

    def batch(arguments: list[str]) -> int:
        _, rows, _, library, *flags = arguments
        for row in read(Path(rows)):
            (Path(library) / row.name).mkdir(parents=True)
            export(box(colour=COLOURS[len(asked)]), Path(library) / row.name / "asset.glb")
        asked.append(flags)
        return 0

    for kind, prompt in zip(run.KINDS, PROMPTS, strict=True):
        (tmp_path / f"prompt_{kind}.txt").write_text(f"{prompt}\n")
    library = tmp_path / "library"
    told = ["--library", str(library), "--clip", str(folder), "--", "--workers", "2"]
    monkeypatch.setattr(run, "threed", batch)
    monkeypatch.setattr(sys, "argv", ["run.py", str(tmp_path), *told])
    assert run.main() == 0
    assert asked == [["--workers", "2"]] * 3
    found, sight = json.loads((library / "t3bench.json").read_text()), Sight.load(folder)
    for kind, prompt, colour in zip(run.KINDS, PROMPTS, COLOURS, strict=False):
        seen = sight.cosines(portraits(box(colour=colour), orbit(run.VIEWS), sight.size), [prompt])
        wanted = {"prompts": 1, "assets": 1, "clip_score": pytest.approx(100 * seen.mean().item(), abs=0.5)}
        assert found[kind] == wanted | {"r_precision": 100.0}  # among one prompt
    said = " ".join(capsys.readouterr().out.split())
    assert "ProlificDreamer 43.3" in said
    assert "SJC 18.7" in said


def test_without_prompts_it_says_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys, "argv", ["run.py", str(tmp_path)])
    with pytest.raises(SystemExit):
        run.main()
    assert "there is no prompt_single.txt" in capsys.readouterr().err
