"""The one vocabulary of the world's language model and of its text tower."""

from __future__ import annotations

import re

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from hialign.data.templates import V1_SYSTEM
from hialign.data.vqa import SHORT_ANSWER
from hialign.tabletop.language import DESCRIBE, FORMS, NUMBERS, PLURALS
from hialign.tabletop.world import COLOURS, KINDS, PLACES, SIZES, STATES

# the end token must not get id 2: Hugging Face's CLIP text tower then reads the state at the highest id instead
SPECIAL = {"pad_token": "<pad>", "image_token": "<image>", "bos_token": "<s>", "eos_token": "</s>"}
# The line end keeps an answer's first word apart from what stands before, so that prompt and row are tokenised alike.
CHAT_TEMPLATE = (
    "{{ '<s>' }}{% for m in messages %}{{ m['role'] + ':\\n' }}"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] %}{{ '<image>\\n' if c['type'] == 'image' else c['text'] }}{% endfor %}{% endif %}"
    "{{ '</s>' if m['role'] == 'assistant' else '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:\\n' }}{% endif %}"
)
_SAID = (
    *(*KINDS, *PLURALS.values(), *COLOURS, *SIZES, *STATES, *PLACES, *NUMBERS, *FORMS, DESCRIBE, SHORT_ANSWER),
    V1_SYSTEM,
    "user: assistant: a an and thing things is are yes no not nothing at in on notes",
    "how many are there? what colour is the where is the to the left of above is there in the image?",
    "please describe this picture photo in detail. answer yes or no. which object objects can you see? it",
)


def tokenizer() -> PreTrainedTokenizerFast:
    """A lower-casing byte-pair tokenizer in which each of the world's words is one token.

    Whatever else is said falls into pieces, down to bytes, so that no text is refused or read as something unknown.
    """
    words = sorted(set(re.findall(r"[a-z]+|[^\sa-z]", " ".join(_SAID).lower().replace("{", " ").replace("}", " "))))
    made = Tokenizer(models.BPE())
    made.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=10_000,  # more than there are merges: it stops when each word is whole
        min_frequency=1,
        show_progress=False,
        special_tokens=list(SPECIAL.values()),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    made.train_from_iterator([text for word in words for text in (word, f". {word}")], trainer)
    made.post_processor = processors.TemplateProcessing(  # as Llama's tokenizer does by default
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", made.token_to_id("<s>"))]
    )
    made.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL.values()])
    named = {name: token for name, token in SPECIAL.items() if name != "image_token"}
    fast = PreTrainedTokenizerFast(
        tokenizer_object=made, **named, extra_special_tokens={"image_token": SPECIAL["image_token"]}
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast
