"""An independent LLaVA that masks what a method removes: one sample, no cache, full attention matrices, plain loops.

It shares only the methods' own `reduce` functions with the harness, which have naive second versions in tests/methods.
A token that goes stays where it is, hidden from the others from its cut on, so an engine that removes must agree;
those that stay move up to their image's first places, which changes nothing unless a cut reorders or merges.
The pseudo CLS is truly inserted behind its image, hidden from every other query by the mask.
"""

import torch
import torch.nn.functional as F

from methods.interface import View


def attend(q, k, v, allowed, scaling, bias=0.0):
    """Heads [H, T, d], allowed [T, T]: the output [T, H·d] and the head-mean attention [T, T]."""
    logits = q @ k.transpose(1, 2) * scaling + bias
    attention = logits.masked_fill(~allowed, -torch.inf).softmax(dim=-1)
    attention = attention.nan_to_num(0.0)
    return (attention @ v).transpose(0, 1).flatten(1), attention.mean(dim=0)


def rollout(matrices, row):
    """Eq. 3 with N×N products: Ã = A at the first layer, (A + I)·Ã above."""
    rolled = matrices[0]
    for matrix in matrices[1:]:
        rolled = (matrix + torch.eye(len(matrix))) @ rolled
    return rolled[row]


class Reference:
    def __init__(self, model):
        self.weights = {name.removeprefix("model."): value for name, value in model.state_dict().items()}
        self.config = model.config

    def linear(self, x, name):
        return F.linear(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))

    def layer_norm(self, x, name):
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return F.layer_norm(x, weight.shape, weight, bias, self.config.vision_config.layer_norm_eps)

    def heads(self, x, count):
        return x.view(len(x), count, -1).transpose(0, 1)

    def see(self, pixels, stages, uniform=None):
        """One image: the features [K, D], the patches [K] in their order, and the sizes [K]."""
        config, w = self.config.vision_config, self.weights
        stages = [stage for stage in stages if stage.seam == "vit"]
        proportional = any(stage.proportional for stage in stages)
        patches = F.conv2d(pixels[None], w["vision_tower.embeddings.patch_embedding.weight"], stride=config.patch_size)
        x = torch.cat([w["vision_tower.embeddings.class_embedding"][None], patches[0].flatten(1).T])
        x = x + w["vision_tower.embeddings.position_embedding.weight"]
        x = self.layer_norm(x, "vision_tower.pre_layrnorm")
        order, size = list(range(1, len(x))), torch.ones(len(x))
        matrices, previous = [], (None, None, None)
        last_layer = config.num_hidden_layers + 1 + self.config.vision_feature_layer
        for layer in range(last_layer + 1):
            x, order, size, matrices = self.cut(stages, False, layer, x, order, size, matrices, *previous, uniform)
            if layer == last_layer:
                break
            base = f"vision_tower.encoder.layers.{layer}"
            h = self.layer_norm(x, f"{base}.layer_norm1")
            q, k, v = (
                self.heads(self.linear(h, f"{base}.self_attn.{p}_proj"), config.num_attention_heads) for p in "qkv"
            )
            alive = torch.zeros(len(x), dtype=torch.bool)
            alive[[0, *order]] = True
            bias = size.log() if proportional else 0.0
            out, attention = attend(q, k, v, alive.expand(len(x), -1), q.shape[-1] ** -0.5, bias)
            matrices = [*matrices, attention]
            x = x + self.linear(out, f"{base}.self_attn.out_proj")
            previous = (v.transpose(0, 1).flatten(1).norm(dim=-1), k.mean(dim=0), attention)
            x, order, size, matrices = self.cut(stages, True, layer, x, order, size, matrices, *previous, uniform)
            h = self.linear(self.layer_norm(x, f"{base}.layer_norm2"), f"{base}.mlp.fc1")
            x = x + self.linear(h * torch.sigmoid(1.702 * h), f"{base}.mlp.fc2")
        projected = self.linear(x[order], "multi_modal_projector.linear_1")
        projected = self.linear(F.gelu(projected), "multi_modal_projector.linear_2")
        patch, sizes = [slot - 1 for slot in order], size[order]
        for stage in stages_of(self.stages, "input"):
            for cut in stage.cuts:
                random = None if uniform is None else uniform(f"input {cut.layer}", len(patch))[None]
                reduced = stage.reduce(View(x=projected[None], size=sizes[None], random=random), cut.tokens)
                index = [i for i in reduced.index[0].tolist() if i >= 0]
                projected = projected[index] if reduced.x is None else reduced.x[0][: len(index)]
                sizes = sizes[index] if reduced.size is None else reduced.size[0][: len(index)]
                patch = [patch[i] for i in index]
        return projected, patch, sizes

    def cut(self, stages, inside, layer, x, order, size, matrices, norms, keys, attention, uniform):
        for stage in stages:
            for cut in stage.cuts:
                if stage.inside != inside or cut.layer != layer:
                    continue
                row = None
                if stage.needs & {"cls_row", "cls_rollout"}:
                    rolled = rollout(matrices, 0) if "cls_rollout" in stage.needs else attention[0]
                    row = rolled[order][None]
                view = View(
                    x=x[order][None],
                    size=size[order][None],
                    attention=row,
                    value_norm=None if norms is None else norms[order][None],
                    keys=None if keys is None else keys[order][None],
                    cls=x[0][None],
                    random=None if uniform is None else uniform(layer, len(order))[None],
                )
                reduced = stage.reduce(view, cut.tokens)
                index = [i for i in reduced.index[0].tolist() if i >= 0]
                order = [order[i] for i in index]
                if reduced.x is not None:
                    x = x.clone()
                    x[order] = reduced.x[0][: len(order)]
                if reduced.size is not None:
                    size = size.clone()
                    size[order] = reduced.size[0][: len(order)]
                matrices = []
        return x, order, size, matrices

    def answer(self, ids, images, method, shape, *, new=(), uniforms=None, pseudo=None):
        """ids without padding. The logits [1 + len(new), V] after the prompt and after each new token; the patches
        of each image that entered the LLM, and those that the last layer saw.
        """
        self.stages = method.stages(shape)
        w, config, contiguous = self.weights, self.config.text_config, method.positions == "contiguous"
        embed = w["language_model.embed_tokens.weight"]
        states, position, owner, rider_of, patch_of, size = [], [], [], [], [], []
        slot, image = 0, 0

        def add(state, place, *, image=-1, patch=-1, weight=1.0, rider=-1):
            states.append(state), position.append(place), owner.append(image)
            rider_of.append(rider), patch_of.append(patch), size.append(weight)

        while slot < len(ids):
            if ids[slot] != self.config.image_token_id:
                add(embed[ids[slot]], slot)
                slot += 1
                continue
            uniform = None if uniforms is None else uniforms[image]
            features, patch, sizes = self.see(images[image], self.stages, uniform)
            for feature, p, weight in zip(features, patch, sizes.tolist(), strict=True):
                add(feature, slot + p, image=image, patch=p, weight=weight)
            slot += shape.patches
            if pseudo is not None:
                add(pseudo[image], slot, rider=image)
            image += 1
        prompt = len(states)
        for step, token in enumerate(new):
            add(embed[token], slot + step)
        x, owner, rider_of = torch.stack(states), torch.tensor(owner), torch.tensor(rider_of)
        position, patch_of, size = torch.tensor(position), torch.tensor(patch_of), torch.tensor(size)
        T = len(x)
        alive = torch.ones(T, dtype=torch.bool)
        rider = rider_of >= 0
        matrices, norms, attention, llm_stages = [], None, None, stages_of(self.stages, "llm")
        H, KV = config.num_attention_heads, config.num_key_value_heads
        for layer in range(config.num_hidden_layers):
            for stage in llm_stages:
                for cut in stage.cuts:
                    if cut.layer != layer:
                        continue
                    for each in range(image):
                        mine = ((owner == each) & alive).nonzero()[:, 0]
                        row = None
                        if "rider_rollout" in stage.needs:
                            row = rollout(matrices, int((rider_of == each).nonzero()))[mine][None]
                        elif "last_row" in stage.needs:
                            row = attention[prompt - 1][mine][None]
                        view = View(
                            x=x[mine][None],
                            size=size[mine][None],
                            attention=row,
                            value_norm=None if norms is None else norms[mine][None],
                            random=None if uniforms is None else uniforms[each](f"llm {layer}", len(mine))[None],
                        )
                        reduced = stage.reduce(view, cut.tokens)
                        index = [i for i in reduced.index[0].tolist() if i >= 0]
                        first, source = mine[: len(index)], mine[index]  # what stays moves up to the first places
                        x, position, patch_of, size = (part.clone() for part in (x, position, patch_of, size))
                        x[first] = x[source] if reduced.x is None else reduced.x[0][: len(index)]
                        size[first] = size[source] if reduced.size is None else reduced.size[0][: len(index)]
                        position[first], patch_of[first] = position[source], patch_of[source]
                        alive[mine[len(index) :]] = False
                    matrices = []
            if layer == 0:
                patches = [patch_of[alive & (owner == each)].tolist() for each in range(image)]
            place = position
            if contiguous:
                counted = alive & ~rider
                place = counted.int().cumsum(0) - 1
                place[rider] += 1
            base = f"language_model.layers.{layer}"
            h = self.rms(x, f"{base}.input_layernorm")
            q, k, v = (
                self.heads(self.linear(h, f"{base}.self_attn.{p}_proj"), n) for p, n in (("q", H), ("k", KV), ("v", KV))
            )
            q, k = self.rope(q, place), self.rope(k, place)
            k, v = (part.repeat_interleave(H // KV, dim=0) for part in (k, v))
            allowed = torch.ones(T, T, dtype=torch.bool).tril() & alive & ~rider | torch.eye(T, dtype=torch.bool)
            out, attention = attend(q, k, v, allowed, q.shape[-1] ** -0.5)
            matrices.append(attention)
            norms = v.transpose(0, 1).flatten(1).norm(dim=-1)
            x = x + self.linear(out, f"{base}.self_attn.o_proj")
            h = self.rms(x, f"{base}.post_attention_layernorm")
            gate = F.silu(self.linear(h, f"{base}.mlp.gate_proj"))
            x = x + self.linear(gate * self.linear(h, f"{base}.mlp.up_proj"), f"{base}.mlp.down_proj")
        logits = F.linear(self.rms(x[prompt - 1 :], "language_model.norm"), w["lm_head.weight"])
        return logits, patches, [patch_of[alive & (owner == each)].tolist() for each in range(image)]

    def rms(self, x, name):
        scaled = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.config.text_config.rms_norm_eps)
        return scaled * self.weights[f"{name}.weight"]

    def rope(self, x, place):
        d = x.shape[-1]
        theta = self.config.text_config.rope_parameters["rope_theta"]
        angle = place[:, None] / theta ** (torch.arange(0, d, 2) / d)
        cos, sin = angle.cos().repeat(1, 2), angle.sin().repeat(1, 2)
        rotated = torch.cat([-x[..., d // 2 :], x[..., : d // 2]], dim=-1)
        return x * cos + rotated * sin


def stages_of(stages, seam):
    return [stage for stage in stages if stage.seam == seam]
