"""What does a training step on drains cost beside a plain Hugging Face loop that encodes nine prompts a sample?

    python benchmarks/drains_training_step.py      # --clip NAME, --batch N, --threads N, --pairs N, --quick

Both hold the same CLIP (random weights, copied from one to the other), the same crops, prompts, loss and AdamW over the
vision tower; text is frozen, as the recipe says. Ours reads the embeddings of the prompts from its bank, made once. The
loop encodes the nine prompts of every sample at every step, in three forms: padded to CLIP's 77 tokens with both towers
in the graph (what `model(**batch).logits_per_image` does when nobody freezes the text), the same with the text tower
frozen, and frozen and padded to the longest prompt only. Steps alternate in one process. Gradients of the vision tower
must point the same way (cosine) before anything is timed.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from timing import agree, in_turn, parse, parser_of, ratio, show, spread, verdict, write
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel

from stagewise.datamodules.drains.boxes import FEATURES
from stagewise.datamodules.drains.vocabulary import CLASSES, TYPE_OF_CLASS
from stagewise.lightning_modules.clip import CLIP_MEAN, CLIP_STD, clip_model
from stagewise.lightning_modules.drains.network import DrainNetwork, allowed_classes
from stagewise.lightning_modules.drains.objective import DrainObjective

BAR, COSINE_BAR, CONTEXT, LR = 3.0, 0.999, 77, 2e-5
QUICK = {
    "embed_dim": 64,
    "vision_cfg": {"layers": 2, "width": 64, "head_width": 32, "patch_size": 16, "image_size": 64},
    "text_cfg": {"layers": 2, "width": 64, "heads": 2, "context_length": CONTEXT},
}
COUNTS = (52, 78, 76, 153, 366, 257, 97, 148, 238)
FORMS = {
    "both towers in the graph": (True, True),
    "text frozen": (False, True),
    "frozen, shortest padding": (False, False),
}


def ours(name: str, px: int, config: dict[str, Any]) -> tuple[DrainNetwork, nn.Module]:
    """Our network, and open_clip's model of the same weights with both towers."""
    schema = {"feature_mean": [0.0] * len(FEATURES), "feature_std": [1.0] * len(FEATURES), "image": {"px": px}}
    made = []
    for build in (
        lambda: DrainNetwork(
            schema, {"name": name, "pretrained": None, "quick_gelu": True, **config}, {"templates": ["a photo of {}"]}
        ),
        lambda: clip_model(name, None, px, quick_gelu=True, **config),
    ):
        torch.manual_seed(0)
        made.append(build())
    return made[0], made[1]


def hugging_face(model: Any, px: int) -> CLIPModel:
    """Hugging Face's model with the weights of an open_clip one."""
    vision, heads = model.visual, model.visual.transformer.resblocks[0].attn.num_heads
    text = model.transformer.resblocks
    sizes = {"hidden_act": "quick_gelu", "attention_dropout": 0.0}
    config = CLIPConfig(
        projection_dim=vision.proj.shape[1],
        vision_config={
            "hidden_size": vision.proj.shape[0],
            "intermediate_size": vision.transformer.resblocks[0].mlp.c_fc.out_features,
            "num_hidden_layers": len(vision.transformer.resblocks),
            "num_attention_heads": heads,
            "image_size": px,
            "patch_size": vision.conv1.kernel_size[0],
            **sizes,
        },
        text_config={
            "hidden_size": model.token_embedding.embedding_dim,
            "intermediate_size": text[0].mlp.c_fc.out_features,
            "num_hidden_layers": len(text),
            "num_attention_heads": text[0].attn.num_heads,
            "max_position_embeddings": CONTEXT,
            "vocab_size": model.token_embedding.num_embeddings,
            "eos_token_id": 2,  # means: the largest id of the row, as CLIP's own code takes it
            **sizes,
        },
    )
    peer = CLIPModel(config)
    peer.load_state_dict(renamed(model.state_dict()))
    return peer


BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
SINGLE = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "logit_scale": "logit_scale",
}
NORMS = {
    "visual.ln_pre": "vision_model.pre_layrnorm",
    "visual.ln_post": "vision_model.post_layernorm",
    "ln_final": "text_model.final_layer_norm",
}


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """open_clip's names -> Hugging Face's."""
    found = {
        "visual_projection.weight": state["visual.proj"].T.contiguous(),
        "text_projection.weight": state["text_projection"].T.contiguous(),
    }
    for name, value in state.items():
        base, _, end = name.rpartition(".")
        if name in SINGLE:
            found[SINGLE[name]] = value
        elif base in NORMS:
            found[f"{NORMS[base]}.{end}"] = value
        elif "resblocks." in name:
            tower = "vision_model" if name.startswith("visual") else "text_model"
            number, inside = name.split("resblocks.")[1].split(".", 1)
            prefix = f"{tower}.encoder.layers.{number}."
            if inside.startswith("attn.in_proj"):
                kind = inside.rsplit("_", 1)[1]
                for letter, part in zip("qkv", value.chunk(3)):
                    found[f"{prefix}self_attn.{letter}_proj.{kind}"] = part
            else:
                found[prefix + BLOCK[inside.rpartition(".")[0]] + "." + inside.rpartition(".")[2]] = value
    return found


def objects(px: int, batch: int) -> dict[str, Tensor]:
    """Random crops of objects of all classes."""
    g = torch.Generator().manual_seed(1)
    label = torch.arange(batch) % len(CLASSES)
    return {
        "image": torch.rand(batch, 3, px, px, generator=g),
        "label": label,
        "box_type": torch.as_tensor(TYPE_OF_CLASS)[label],
        "position": torch.randint(3, (batch,), generator=g),
        "context": torch.zeros(batch, dtype=torch.int64),
    }


def padded(
    network: DrainNetwork, tokenize: Callable[[list[str]], Tensor], batch: dict[str, Tensor], full: bool
) -> Tensor:
    """Tokens of nine prompts for each sample, as plain loops have one template: (B * 9, L)."""
    variants = network.builder.variant_of(batch["position"], batch["context"]).tolist()
    texts = [t for v in variants for k in range(len(CLASSES)) for t in network.builder.prompts(k, v)]
    tokens = tokenize(texts)
    return tokens if full else tokens[:, : int((tokens != 0).sum(1).max())]


def peer_loss(peer: CLIPModel, tokens: Tensor, batch: dict[str, Tensor], objective: DrainObjective) -> Tensor:
    """The loop's loss: the similarity of a crop to its own nine prompts, impossible classes masked."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    size = len(batch["label"])
    image = peer.visual_projection(peer.vision_model((batch["image"] - mean) / std).pooler_output)
    text = peer.text_projection(peer.text_model(tokens, attention_mask=torch.ones_like(tokens)).pooler_output)
    each = F.normalize(text, dim=-1).view(size, len(CLASSES), -1, image.shape[-1])
    texts = F.normalize(each.mean(2), dim=-1)
    logits = peer.logit_scale.exp() * torch.einsum("bd,bkd->bk", F.normalize(image, dim=-1), texts)
    masked = logits.masked_fill(~allowed_classes()[batch["box_type"]], -torch.inf)
    loss: Tensor = objective(masked, batch["label"])
    return loss


def main() -> None:
    """Compares."""
    parser = parser_of(__doc__, pairs=5)
    parser.add_argument("--clip", default="ViT-B-32", help="open_clip's name (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=16, help="objects a step (default: %(default)s)")
    options = parse(parser)
    px, config = (64, QUICK) if options.quick else (224, {})
    network, model = ours(options.clip, px, config)
    network.train()
    peer = hugging_face(model, px).train()
    objective, batch = DrainObjective(COUNTS, ["effective_number"]), objects(px, options.batch)
    tokens = tokens_of(options.clip, network, batch)
    cosine = same_gradient(network, peer, tokens["text frozen"], batch, objective)
    calls = {"ours": step_of(network.visual, lambda: objective(network(batch)["logits"], batch["label"]))}
    for form, (graph, _) in FORMS.items():
        calls[form] = peer_step(peer, tokens[form], batch, objective, graph)
    report(in_turn(calls, options.pairs), options, cosine)


def tokens_of(name: str, network: DrainNetwork, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Made before the clock starts, for every form of the loop."""
    import open_clip

    tokenize = open_clip.get_tokenizer(name, context_length=CONTEXT)
    return {form: padded(network, tokenize, batch, full) for form, (_, full) in FORMS.items()}


def same_gradient(
    network: DrainNetwork, peer: CLIPModel, tokens: Tensor, batch: dict[str, Tensor], objective: DrainObjective
) -> float:
    """Cosine of both gradients of the vision tower; ends the script where the losses differ."""
    first = objective(network(batch)["logits"], batch["label"])
    second = peer_loss(peer, tokens, batch, objective)
    agree("loss", abs(first.item() - second.item()), 1e-3)
    first.backward()
    second.backward()
    theirs = dict(peer.named_parameters())
    a, b = [], []
    for name, value in network.visual.named_parameters():
        parts = renamed_gradient(name, value)
        a += [part.flatten() for part in parts.values()]
        b += [theirs[own].grad.flatten() for own in parts]  # type: ignore[union-attr]
    cosine = float(F.cosine_similarity(torch.cat(a).double(), torch.cat(b).double(), dim=0))
    print(verdict("cosine of the gradients of the vision tower", cosine, COSINE_BAR, at_most=False))
    return cosine


def renamed_gradient(name: str, value: nn.Parameter) -> dict[str, Tensor]:
    """The gradient of one of our parameters under the peer's names."""
    assert value.grad is not None
    nothing = torch.zeros(1, 1)
    found = renamed({"visual.proj": nothing, "text_projection": nothing} | {f"visual.{name}": value.grad})
    kept = {"visual_projection.weight"} if name == "proj" else set(found) - {"visual_projection.weight"}
    return {own: part for own, part in found.items() if own in kept - {"text_projection.weight"}}


def step_of(tower: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
    """One step of AdamW over a tower."""
    optimizer = torch.optim.AdamW(tower.parameters(), lr=LR, weight_decay=0.01, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def peer_step(
    peer: CLIPModel, tokens: Tensor, batch: dict[str, Tensor], objective: DrainObjective, graph: bool
) -> Callable[[], None]:
    """One step of the loop over its vision tower; ``graph`` keeps the text tower's gradient too."""
    vision = nn.ModuleList([peer.vision_model, peer.visual_projection])
    step = step_of(vision, lambda: peer_loss(peer, tokens, batch, objective))

    def call() -> None:
        for part in (peer.text_model, peer.text_projection):
            part.requires_grad_(graph)
        step()
        peer.zero_grad()

    return call


def report(seconds: dict[str, list[float]], options: argparse.Namespace, cosine: float) -> None:
    """Table and verdicts."""
    rows, figures = [], {"seconds": seconds, "cosine": cosine}
    for name, values in seconds.items():
        speed = spread([options.batch / value for value in values])
        faster = ratio(values, seconds["ours"])
        figures[name] = {"objects_per_s": speed, "times": faster}
        rows.append({"loop": name, "objects a second": show(speed), "ours is faster by": show(faster)})
    write("drains_training_step", options, figures, rows)
    for form in FORMS:
        median = ratio(seconds[form], seconds["ours"])["median"]
        print(verdict(f"objects a second, times the loop with {form}", median, BAR, at_most=False))


if __name__ == "__main__":
    main()
