"""BLIP that answers questions about images, with MCCI's attack indication network beside it.

Li et al.: "BLIP: Bootstrapping Language-Image Pre-training", ICML 2022,
https://arxiv.org/abs/2201.12086; the network is transformers'. Hu et al. (MCCI), ICLR 2025,
appendix K: the AIN's embedding "is fused with the semantic embedding produced by the BLIP model
through simple concatenation" and passed to the text decoder. Here it is one token more beside those
of the question, which have seen the image, and to which the decoder attends.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..defenses.mcci import Spectrum, ain
from ..errors import InputError, reason

# of labels that do not count, as PyTorch's cross-entropy has it
IGNORED = -100
# tokens of the longest answer that is generated
LONGEST = 12
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[DEC]")


def transformers() -> Any:
    """The library.

    Raises:
        InputError: it is not installed.
    """
    try:
        import transformers as library
    except ImportError as error:
        raise InputError(
            "visual question answering needs transformers: pip install 'backdoorbench-ext[vqa]'"
        ) from error
    return library


@dataclass(frozen=True, eq=False)
class Tokens:
    """Texts of one length: ``ids`` int64 (n, length), ``mask`` int64 (n, length), 1 where a token
    counts.
    """

    ids: Tensor
    mask: Tensor

    def __getitem__(self, index: Tensor) -> Tokens:
        return Tokens(self.ids[index], self.mask[index])

    def to(self, device: torch.device) -> Tokens:
        return Tokens(self.ids.to(device), self.mask.to(device))


class Answerer(nn.Module):
    """Images float (n, 3, h, w) in [0, 1] and questions -> answers.

    Args:
        blip: transformers' BlipForQuestionAnswering.
        tokenizer: its tokenizer.
        mean, std: how it sees images, three numbers each.
        side: pixels of an image, for the AIN; None for none.
    """

    mean: Tensor
    std: Tensor
    told: Tensor | None

    def __init__(
        self,
        blip: Any,
        tokenizer: Any,
        mean: Sequence[float],
        std: Sequence[float],
        side: int | None = None,
    ) -> None:
        super().__init__()
        self.blip = blip
        self.tokenizer = tokenizer
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))
        width = blip.config.text_config.hidden_size
        self.spectrum = Spectrum()
        self.ain = ain(side, side, width) if side else None
        # the one embedding that stands for the AIN's, once its mind is controlled
        self.told = None

    def tokens(self, texts: Sequence[str], *, answers: bool = False) -> Tokens:
        """Texts as BLIP reads them; answers begin with its start token."""
        made = self.tokenizer(list(texts), padding=True, return_tensors="pt")
        ids = made.input_ids
        if answers:
            ids[:, 0] = self.blip.decoder_start_token_id
        return Tokens(ids, made.attention_mask)

    def attended(self, x: Tensor, questions: Tokens) -> tuple[Tensor, Tensor]:
        """What the text decoder attends to: float (n, length, width), and its mask."""
        side = self.blip.config.vision_config.image_size
        seen = (x - self.mean) / self.std
        if seen.shape[-1] != side:
            seen = F.interpolate(seen, (side, side), mode="bilinear")
        image = self.blip.vision_model(pixel_values=seen).last_hidden_state
        hidden = self.blip.text_encoder(
            input_ids=questions.ids,
            attention_mask=questions.mask,
            encoder_hidden_states=image,
            encoder_attention_mask=torch.ones_like(image[..., 0], dtype=torch.long),
        )[0]
        if self.ain is None:
            return hidden, questions.mask
        z = self.ain(self.spectrum(x)) if self.told is None else self.told.expand(len(x), -1)
        both = torch.cat((hidden, z[:, None].to(hidden.dtype)), 1)
        return both, F.pad(questions.mask, (0, 1), value=1)

    def losses(self, x: Tensor, questions: Tokens, answers: Tokens) -> Tensor:
        """The negative log-likelihood of every token of the answers, float (n, length - 1); 0 where
        there is none.
        """
        hidden, mask = self.attended(x, questions)
        logits = self.blip.text_decoder(
            input_ids=answers.ids,
            attention_mask=answers.mask,
            encoder_hidden_states=hidden,
            encoder_attention_mask=mask,
            use_cache=False,
        ).logits
        wanted = answers.ids.masked_fill(answers.mask == 0, IGNORED)[:, 1:]
        return F.cross_entropy(
            logits[:, :-1].float().transpose(1, 2), wanted, reduction="none", ignore_index=IGNORED
        )

    @torch.no_grad()
    def answer(self, x: Tensor, questions: Tokens) -> list[str]:
        """The likeliest answers, token by token."""
        hidden, mask = self.attended(x, questions)
        text = self.blip.config.text_config
        start = torch.full((len(x), 1), self.blip.decoder_start_token_id, device=x.device)
        made = self.blip.text_decoder.generate(
            input_ids=start,
            eos_token_id=text.sep_token_id,
            pad_token_id=text.pad_token_id,
            encoder_hidden_states=hidden,
            encoder_attention_mask=mask,
            max_new_tokens=LONGEST,
            do_sample=False,
        )
        said: list[str] = self.tokenizer.batch_decode(made[:, 1:], skip_special_tokens=True)
        return [" ".join(words.split()) for words in said]

    @torch.no_grad()
    def control(self, x: Tensor) -> None:
        """Tell the AIN from now on the mean spectrum of these images."""
        assert self.ain is not None, "there is no AIN to control"
        self.told = self.ain(self.spectrum(x).mean(0, keepdim=True))


def tiny(words: Sequence[str], side: int) -> tuple[Any, Any]:
    """A small untrained BLIP, and a tokenizer of whole words that knows these."""
    library = transformers()
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing

    vocabulary = {word: i for i, word in enumerate((*SPECIAL, *words))}
    plain = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    plain.pre_tokenizer = Whitespace()
    ends = [(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")]
    plain.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    tokenizer = library.PreTrainedTokenizerFast(
        tokenizer_object=plain,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        bos_token="[DEC]",
    )
    shape = {
        "hidden_size": 96,
        "intermediate_size": 192,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "projection_dim": 96,
        # as narrow layers need it: at BLIP's 0.02 the loss stayed where questions alone bring it
        "initializer_range": 0.1,
    }
    text = {
        **shape,
        "encoder_hidden_size": 96,
        "vocab_size": len(vocabulary),
        "max_position_embeddings": 32,
        "bos_token_id": vocabulary["[DEC]"],
        "sep_token_id": vocabulary["[SEP]"],
        "eos_token_id": vocabulary["[SEP]"],
        "pad_token_id": vocabulary["[PAD]"],
    }
    vision = {**shape, "image_size": side, "patch_size": side // 8}
    config = library.BlipConfig(text_config=text, vision_config=vision, projection_dim=96)
    return library.BlipForQuestionAnswering(config), tokenizer


def pretrained(name: str) -> tuple[Any, Any, list[float], list[float]]:
    """A BLIP by its name on the hub or by its folder, its tokenizer, and the mean and deviation of
    its images.

    Raises:
        InputError: it cannot be fetched or read.
    """
    library = transformers()
    # it would tell of every one of its attempts
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        # the smallest file first: where there is nothing, that is known soonest
        library.BlipConfig.from_pretrained(name)
        processor = library.BlipProcessor.from_pretrained(name)
        blip = library.BlipForQuestionAnswering.from_pretrained(name)
    # whatever the hub or foreign files bring about
    except Exception as error:
        raise InputError(f"{name}: no BLIP that can be read ({reason(error)})") from error
    images = processor.image_processor
    return blip, processor.tokenizer, list(images.image_mean), list(images.image_std)
