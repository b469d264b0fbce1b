"""Random tiny encoders of every family with tokenizers, and what transformers and bert-score make
of them.

Weights are drawn with numpy, so that they are the same with and without torch.
"""

import json

import llama_models
import numpy as np
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, trainers

# In English, German, Japanese, Chinese and Hindi.
TEXTS = (
    "The screen is good, but the battery does not last.",
    "A bright screen and a weak battery.",
    "Der Akku ist schlecht, der Bildschirm dafür großartig.",
    "Ein schwacher Akku, leider.",
    "画面はとても良いですが、電池がすぐになくなります。",
    "電池が弱いです。",
    "屏幕很好，但是电池用不久。",
    "电池太差了。",
    "स्क्रीन अच्छी है, लेकिन बैटरी जल्दी खत्म हो जाती है।",
    "बैटरी कमज़ोर है।",
)

# Tokens that the tokenizers cut texts to.
LIMIT = 40

_COMMON = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "hidden_act": "gelu",
}
# config.json of each; RoBERTa's positions begin behind the id of its padding.
FAMILIES = {
    "bert": _COMMON
    | {"model_type": "bert", "architectures": ["BertForPreTraining"], "layer_norm_eps": 1e-12}
    | {"max_position_embeddings": 48, "type_vocab_size": 2, "pad_token_id": 0},
    "roberta": _COMMON
    | {"model_type": "roberta", "architectures": ["RobertaForMaskedLM"], "layer_norm_eps": 1e-5}
    | {"max_position_embeddings": 50, "type_vocab_size": 1, "pad_token_id": 1},
    "xlm-roberta": _COMMON
    | {"model_type": "xlm-roberta", "architectures": ["XLMRobertaModel"], "layer_norm_eps": 1e-5}
    | {"max_position_embeddings": 50, "type_vocab_size": 1, "pad_token_id": 1},
}


def weights(fields):
    """Random tensors under the names that the family's files on the hub have."""
    d, f, rng = fields["hidden_size"], fields["intermediate_size"], np.random.default_rng(0)
    found = {}

    def linear(name, o, i):
        found[f"{name}.weight"] = rng.normal(size=(o, i)) / np.sqrt(i)
        found[f"{name}.bias"] = 0.1 * rng.normal(size=o)

    def norm(name):
        # BERT's files are from before torch had this norm.
        first, second = ("gamma", "beta") if kind == "bert" else ("weight", "bias")
        found[f"{name}.{first}"] = 1 + 0.2 * rng.normal(size=d)
        found[f"{name}.{second}"] = 0.1 * rng.normal(size=d)

    kind = fields["model_type"]
    prefix = "" if kind == "xlm-roberta" else f"{kind}."
    for name, rows in (
        ("word_embeddings", fields["vocab_size"]),
        ("position_embeddings", fields["max_position_embeddings"]),
        ("token_type_embeddings", fields["type_vocab_size"]),
    ):
        found[f"{prefix}embeddings.{name}.weight"] = rng.normal(size=(rows, d))
    norm(f"{prefix}embeddings.LayerNorm")
    for layer in range(fields["num_hidden_layers"]):
        block = f"{prefix}encoder.layer.{layer}"
        for name in ("query", "key", "value"):
            linear(f"{block}.attention.self.{name}", d, d)
        linear(f"{block}.attention.output.dense", d, d)
        norm(f"{block}.attention.output.LayerNorm")
        linear(f"{block}.intermediate.dense", f, d)
        linear(f"{block}.output.dense", d, f)
        norm(f"{block}.output.LayerNorm")
    if prefix:  # Parts that are of no use here.
        found["cls.predictions.bias" if kind == "bert" else "lm_head.bias"] = np.zeros(3)
    return {name: x.astype(np.float32) for name, x in found.items()}


def checkpoint(directory, fields, *, files=1):
    """Writes a random encoder as a Hugging Face directory, without a tokenizer."""
    directory.mkdir(parents=True)
    llama_models.save(directory, weights(fields), files)
    (directory / "config.json").write_text(json.dumps(fields))
    return directory


def tokenizer(kind, **options):
    """Trains the family's tokenizer on `TEXTS`; the options are for transformers."""
    import transformers

    texts, size = TEXTS * 3, _COMMON["vocab_size"]
    if kind == "bert":
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        trained = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
        trained.normalizer = normalizers.BertNormalizer(lowercase=False)
        trained.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        make = trainers.WordPieceTrainer(
            vocab_size=size, special_tokens=special, show_progress=False
        )
        trained.train_from_iterator(texts, make)
        vocab = trained.get_vocab()
        return transformers.BertTokenizer(vocab=vocab, do_lower_case=False, **options)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    if kind == "roberta":
        trained = tokenizers.Tokenizer(models.BPE())
        trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        make = trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        trained.train_from_iterator(texts, make)
        model = json.loads(trained.to_str())["model"]
        merges = [tuple(pair) for pair in model["merges"]]
        return transformers.RobertaTokenizer(vocab=model["vocab"], merges=merges, **options)
    trained = tokenizers.Tokenizer(models.Unigram())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    make = trainers.UnigramTrainer(
        vocab_size=size, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    trained.train_from_iterator(texts, make)
    pieces = [tuple(piece) for piece in json.loads(trained.to_str())["model"]["vocab"]]
    return transformers.XLMRobertaTokenizer(vocab=pieces, **options)


def make(directory, kind, *, model_max_length=LIMIT, changes=None):
    """Writes a random encoder of a family with its tokenizer."""
    checkpoint(directory, FAMILIES[kind] | (changes or {}))
    limit = {} if model_max_length is None else {"model_max_length": model_max_length}
    tokenizer(kind, **limit).save_pretrained(directory)
    return directory


def hidden_of(directory, tokens, lengths):
    """The hidden states of transformers' model behind every layer, [l + 1, b, s, d]."""
    import torch
    import transformers

    model = transformers.AutoModel.from_pretrained(directory, dtype=torch.float32).eval()
    mask = np.arange(tokens.shape[1]) < lengths[:, None]
    with torch.no_grad():
        out = model(
            torch.tensor(tokens),
            attention_mask=torch.tensor(mask.astype(int)),
            output_hidden_states=True,
        )
    return np.stack([x.numpy() for x in out.hidden_states])


def peer(directory, layer):
    """bert-score's scorer, with the tokenizer that it was written for."""
    import bert_score
    import transformers

    found = bert_score.BERTScorer(model_type=str(directory), num_layers=layer, device="cpu")
    # bert-score asks for both a call; transformers 5 ignores the one and has not the other.
    made = transformers.AutoTokenizer.from_pretrained(directory, add_prefix_space=True)
    made.build_inputs_with_special_tokens = lambda ids: [
        made.cls_token_id,
        *ids,
        made.sep_token_id,
    ]
    found._tokenizer = made
    return found
