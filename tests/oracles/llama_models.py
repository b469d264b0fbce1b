"""Random tiny checkpoints of every family, and what transformers and PEFT make of them.

Checkpoints are drawn with numpy, so that they are the same with and without torch.

  python tests/oracles/llama_models.py

writes golden.json beside this file: logits, greedy continuations and adapter gradients.
"""

import json
import pathlib

import numpy as np
import safetensors.numpy

GOLDEN = pathlib.Path(__file__).with_name("golden.json")

_COMMON = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_LLAMA = _COMMON | {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_QWEN2 = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
_QWEN3 = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}

# config.json of each, under the names that the hub's and today's transformers' files have.
VARIANTS = {
    "llama 3.0": _LLAMA | {"rope_theta": 500_000.0},
    # Sequences of 100 tokens reach beyond the original 32.
    "llama 3.1": _LLAMA | {"rope_theta": 500_000.0, "rope_scaling": _LLAMA3_ROPE},
    "llama 3.1, as transformers 5 writes it": _LLAMA
    | {"rope_parameters": _LLAMA3_ROPE | {"rope_theta": 500_000.0}},
    "llama 3.2, tied": _LLAMA
    | {
        "rope_theta": 500_000.0,
        "rope_scaling": _LLAMA3_ROPE | {"factor": 32.0},
        "tie_word_embeddings": True,
        "head_dim": 16,
    },
    "llama, a key head a query head": _LLAMA | {"num_key_value_heads": 4, "rope_theta": 10_000.0},
    "llama, one key head": _LLAMA | {"num_key_value_heads": 1, "rope_theta": 10_000.0},
    "llama with biases": _LLAMA | {"attention_bias": True, "mlp_bias": True},
    "mistral": _COMMON
    | {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
    | {"sliding_window": None, "rope_theta": 1_000_000.0},
    "qwen2": _COMMON | _QWEN2 | {"use_sliding_window": False, "sliding_window": 64},
    "qwen3": _COMMON | _QWEN3 | {"head_dim": 16, "tie_word_embeddings": True},
    "qwen3 with biases": _COMMON | _QWEN3 | {"head_dim": 8, "attention_bias": True},
}


def shapes(fields):
    """The tensors of a checkpoint by their Hugging Face names."""
    d, f, v = fields["hidden_size"], fields["intermediate_size"], fields["vocab_size"]
    c = fields.get("head_dim") or d // fields["num_attention_heads"]
    q, kv = c * fields["num_attention_heads"], c * fields["num_key_value_heads"]
    kind = fields["model_type"]
    bias = kind == "qwen2" or fields.get("attention_bias", False)
    found = {"model.embed_tokens.weight": (v, d), "model.norm.weight": (d,)}
    if not fields["tie_word_embeddings"]:
        found["lm_head.weight"] = (v, d)
    for layer in range(fields["num_hidden_layers"]):
        block = f"model.layers.{layer}"
        for name in ("input_layernorm", "post_attention_layernorm"):
            found[f"{block}.{name}.weight"] = (d,)
        for name, out in (("q_proj", q), ("k_proj", kv), ("v_proj", kv)):
            found[f"{block}.self_attn.{name}.weight"] = (out, d)
            if bias:
                found[f"{block}.self_attn.{name}.bias"] = (out,)
        found[f"{block}.self_attn.o_proj.weight"] = (d, q)
        if bias and kind != "qwen2":
            found[f"{block}.self_attn.o_proj.bias"] = (d,)
        if kind == "qwen3":
            found[f"{block}.self_attn.q_norm.weight"] = (c,)
            found[f"{block}.self_attn.k_norm.weight"] = (c,)
        for name, shape in (("gate_proj", (f, d)), ("up_proj", (f, d)), ("down_proj", (d, f))):
            found[f"{block}.mlp.{name}.weight"] = shape
            if fields.get("mlp_bias"):
                found[f"{block}.mlp.{name}.bias"] = shape[:1]
    return found


def weights(fields, seed=0, dtype=np.float32):
    """Random tensors that give logits of the size of one."""
    rng = np.random.default_rng(seed)
    drawn = {}
    for name, shape in shapes(fields).items():
        values = rng.normal(size=shape)
        if name.endswith("bias"):
            values *= 0.3
        elif "norm" in name:
            values = 1 + 0.2 * values
        elif "embed_tokens" not in name:
            values *= 1.5 / np.sqrt(shape[1])
        drawn[name] = values.astype(dtype)
    return drawn


def checkpoint(directory, fields, *, seed=0, dtype=np.float32, files=1):
    """Writes a random model as a Hugging Face directory, without a tokenizer."""
    directory.mkdir(parents=True)
    tensors = weights(fields, seed, dtype)
    save(directory, tensors, files)
    (directory / "config.json").write_text(json.dumps(fields))
    return directory


def save(directory, tensors, files=1):
    """Writes tensors into so many files, with an index if there are several."""
    metadata = {"format": "pt"}
    if files == 1:
        safetensors.numpy.save_file(tensors, directory / "model.safetensors", metadata=metadata)
        return
    places = {}
    for number, names in enumerate(np.array_split(list(tensors), files), 1):
        file = f"model-{number:05d}-of-{files:05d}.safetensors"
        safetensors.numpy.save_file({n: tensors[n] for n in names}, directory / file, metadata)
        places |= dict.fromkeys(map(str, names), file)
    index = {"metadata": {}, "weight_map": places}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def tokens(fields, rows=2, length=100):
    return np.random.default_rng(1).integers(3, fields["vocab_size"], (rows, length))


def adapter_tensors(fields, rank=4):
    """Random LoRA factors of every linear, under PEFT's names."""
    rng = np.random.default_rng(2)
    found = {}
    for name, shape in shapes(fields).items():
        if "_proj.weight" in name:
            path = f"base_model.model.{name.removesuffix('.weight')}"
            a, b = rng.normal(size=(rank, shape[1])), rng.normal(size=(shape[0], rank))
            found[f"{path}.lora_A.weight"] = (a / np.sqrt(shape[1])).astype(np.float32)
            found[f"{path}.lora_B.weight"] = (b / np.sqrt(rank)).astype(np.float32)
    return found


def write_adapter(directory, fields, rank=4, alpha=6.0):
    """Writes them as PEFT's files."""
    directory.mkdir(parents=True)
    found = adapter_tensors(fields, rank)
    safetensors.numpy.save_file(found, directory / "adapter_model.safetensors", {"format": "pt"})
    targets = sorted({name.split(".")[-3] for name in found})
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": alpha}
    config |= {"target_modules": targets, "lora_dropout": 0.0, "bias": "none"}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    return directory


def model_of(directory):
    import torch
    import transformers

    found = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    return found.eval()


def logits_of(model, ids):
    import torch

    with torch.no_grad():
        return model(torch.tensor(ids)).logits.numpy()


def greedy_of(model, prompt, count):
    """The most likely continuation of one prompt, without any stop."""
    import torch

    found = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=count,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return found[0, len(prompt) :].tolist()


def gradients_of(directory, adapter, ids):
    """PEFT's gradients of an adapter under the mean loss over all next tokens, by tensor name."""
    import peft
    import torch

    model = peft.PeftModel.from_pretrained(model_of(directory), adapter, is_trainable=True)
    model(torch.tensor(ids), labels=torch.tensor(ids)).loss.backward()
    return {
        name.replace(".default", ""): parameter.grad.numpy()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


# What golden.json keeps of logits [row, place, vocabulary] and of a gradient.
PLACES, FIRST = (0, 31, 99), 16


def excerpt(logits):
    return logits[:, PLACES, :FIRST]


def gradient_excerpt(gradient):
    return gradient[:2, :8]


def _golden(folder):
    found = {}
    for name, fields in VARIANTS.items():
        directory = checkpoint(folder / name, fields)
        ids, model = tokens(fields), model_of(directory)
        prompts = ids[0, :5].tolist(), ids[1, :50].tolist()
        adapter = write_adapter(folder / f"{name} adapter", fields)
        gradients = gradients_of(directory, adapter, ids[:, :40])
        found[name] = {
            "logits": np.round(excerpt(logits_of(model, ids)).astype(float), 6).tolist(),
            "greedy": [greedy_of(model, prompt, 40) for prompt in prompts],
            "gradients": {
                tensor: np.round(gradient_excerpt(x).astype(float), 8).tolist()
                for tensor, x in gradients.items()
                if ".layers.0." in tensor
            },
        }
    return found


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        GOLDEN.write_text(json.dumps(_golden(pathlib.Path(folder))) + "\n")
