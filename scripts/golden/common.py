"""What the golden scripts share: the JSON layout, the configs, one case of logits."""

import copy
import json
import os
import platform
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here is fetched from the hub

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM, Phi3Config
from transformers.models.llama import modeling_llama

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "tests" / "data"
CONFIG_CLASSES = {"llama": LlamaConfig, "phi3": Phi3Config}


def head(script, **more):
    """The first lines of every golden file: who made it, with what."""
    return {
        "script": f"scripts/golden/{script}",
        "transformers": transformers.__version__,
        "torch": torch.__version__.split("+")[0],
        "python": platform.python_version(),
    } | more


def compact(value):
    return json.dumps(value, separators=(", ", ": "), ensure_ascii=True)


def fields(entry, indent):
    """One `"key": value` line per key, so that a diff names what changed."""
    return (",\n" + indent).join(f"{compact(k)}: {compact(v)}" for k, v in entry.items())


def render(top, **lists):
    """A JSON object: the keys of `top`, then each list with its entries spread one key a line."""
    parts = [fields(top, "")]
    for name, entries in lists.items():
        body = ",\n".join("{" + fields(e, " ") + "}" for e in entries)
        parts.append(f"{compact(name)}: [\n{body}\n]")
    text = "{" + ",\n".join(parts) + "}\n"
    json.loads(text)  # the layout is written by hand, so prove that it is JSON
    return text


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    print(f"{path.relative_to(ROOT)}: {len(text)} bytes")


def decimal(value):
    """The shortest of 9 significant digits: enough to give every f32 back exactly."""
    return float(f"{float(value):.9g}")


def make_config(fragment, **base):
    """A config object from a config.json fragment. A copy: transformers edits the dict it is given."""
    fragment = copy.deepcopy(fragment)
    return CONFIG_CLASSES[fragment.pop("model_type")](**(base | fragment))


def with_rope(model, fragment, base):
    """The weights of `model` in a new eager model whose rotary embedding follows `fragment`."""
    config = make_config(fragment, **base)
    config._attn_implementation = "eager"
    other = LlamaForCausalLM(config).eval()
    other.load_state_dict(model.state_dict())
    return other


def base_of(config):
    """The sizes of a loaded model, without anything that a rope fragment decides."""
    names = (
        "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads "
        "num_key_value_heads rms_norm_eps tie_word_embeddings hidden_act attention_bias mlp_bias"
    )
    return {name: getattr(config, name) for name in names.split()}


class Float64:
    """Inside it, RMS norm and softmax stay in float64; transformers casts both to float32.

    What is left of float32 is the rotary table, which is part of the definition under test.
    """

    def __enter__(self):
        self.norm = modeling_llama.LlamaRMSNorm.forward
        self.softmax = torch.nn.functional.softmax

        def norm(module, x):
            return module.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + module.variance_epsilon))

        modeling_llama.LlamaRMSNorm.forward = norm
        torch.nn.functional.softmax = lambda x, dim=-1, dtype=None: self.softmax(x, dim=dim)

    def __exit__(self, *_):
        modeling_llama.LlamaRMSNorm.forward = self.norm
        torch.nn.functional.softmax = self.softmax


def mean_nll(logits, ids):
    """Mean of -ln p(next token), from the second token on, summed in float64."""
    logp = torch.log_softmax(logits[:-1].double(), dim=-1)
    return -logp.gather(1, ids[1:, None]).mean().item()


@torch.no_grad()
def logits_case(name, model, fragment, base, ids, positions, vocab_ids):
    """Run one rope config over `ids` in float32, and again in float64 to say how far off float32 is."""
    ids = torch.tensor(ids)
    net = with_rope(model, fragment, base)
    logits = net(ids[None], use_cache=False).logits[0]
    with Float64():
        exact = net.double()(ids[None], use_cache=False).logits[0]
    assert logits.dtype == torch.float32 and exact.dtype == torch.float64
    lse = torch.logsumexp(logits.double(), dim=-1)
    case = {
        "name": name,
        "config": fragment,
        "n_tokens": len(ids),
        "mean_nll": decimal(mean_nll(logits, ids)),
        "max_abs_diff_f64": float(f"{(logits.double() - exact).abs().max().item():.3g}"),
        "mean_nll_diff_f64": float(f"{abs(mean_nll(logits, ids) - mean_nll(exact, ids)):.3g}"),
        "positions": positions,
        "argmax": logits[positions].argmax(-1).tolist(),
        "argmax_margin": [decimal(first - second) for first, second in logits[positions].topk(2).values],
        "log_sum_exp": [decimal(lse[p]) for p in positions],
        "logits": [[decimal(v) for v in logits[p, vocab_ids]] for p in positions],
    }
    print(
        f"{name}: {len(ids)} tokens, NLL {case['mean_nll']:.6f}, "
        f"float32 to float64 at most {case['max_abs_diff_f64']:.3g} (NLL {case['mean_nll_diff_f64']:.3g})"
    )
    return case
