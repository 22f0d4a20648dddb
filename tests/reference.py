"""An independent LLaVA that masks what a method removes: one sample, no cache, full attention matrices, plain loops.

It shares only the methods' own `reduce` functions with the harness, which have naive second versions in tests/methods.
A token that goes stays where it is, hidden from the others from its cut on, so an engine that removes must agree;
those that stay move up to their image's first places, which changes nothing unless a cut reorders or merges.
The pseudo CLS is truly inserted behind its image, hidden from every other query by the mask unless it is one of the
sequence's own tokens.
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


def rollout(matrices, row, identity):
    """Eq. 3 with N×N products: Ã = A, or A + I, at the first layer, (A + I)·Ã above."""
    first, *above = matrices
    rolled = first + torch.eye(len(first)) if identity else first
    for matrix in above:
        rolled = (matrix + torch.eye(len(matrix))) @ rolled
    return rolled[row]


def own_attention(stage, own, matrices, row, order):
    """View.attention [1, N] and View.rows [1, G, N] where the stage needs those of the (pseudo) CLS, `row` of each."""
    if stage.needs & {f"{own}_rows"}:
        return None, torch.stack([matrix[row][order] for matrix in matrices])[None]
    if stage.needs & {f"{own}_rollout"}:
        return rollout(matrices, row, stage.identity)[order][None], None
    if stage.needs & {f"{own}_row"}:
        return matrices[-1][row][order][None], None
    return None, None


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
        """One image: the features [K, D], the patches [K] in their order, the sizes [K], and the projected CLS [D]."""
        config, w = self.config.vision_config, self.weights
        pixels, patch_of, size = self.resize(pixels, stages_of(stages, "image"))
        vit_stages = stages_of(stages, "vit")
        proportional = any(stage.proportional for stage in vit_stages)
        patches = F.conv2d(pixels[None], w["vision_tower.embeddings.patch_embedding.weight"], stride=config.patch_size)
        x = torch.cat([w["vision_tower.embeddings.class_embedding"][None], patches[0].flatten(1).T])
        x = x + self.places(patches.shape[-1])
        x = self.layer_norm(x, "vision_tower.pre_layrnorm")
        order, size = list(range(1, len(x))), torch.cat([torch.ones(1), size])
        matrices, previous = [], (None, None)
        last_layer = config.num_hidden_layers + 1 + self.config.vision_feature_layer
        for layer in range(last_layer + 1):
            x, order, size, matrices = self.cut(vit_stages, False, layer, x, order, size, matrices, *previous, uniform)
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
            previous = (v.transpose(0, 1).flatten(1).norm(dim=-1), k.mean(dim=0))
            x, order, size, matrices = self.cut(vit_stages, True, layer, x, order, size, matrices, *previous, uniform)
            h = self.linear(self.layer_norm(x, f"{base}.layer_norm2"), f"{base}.mlp.fc1")
            x = x + self.linear(h * torch.sigmoid(1.702 * h), f"{base}.mlp.fc2")
        projected, cls = self.project(x[order]), self.project(x[:1])[0]
        patch, sizes = [patch_of[slot - 1] for slot in order], size[order]
        for stage in stages_of(stages, "input"):
            for cut in stage.cuts:
                random = None if uniform is None else uniform(f"input {cut.layer}", len(patch))[None]
                reduced = stage.reduce(View(x=projected[None], size=sizes[None], random=random), cut.tokens)
                index = [i for i in reduced.index[0].tolist() if i >= 0]
                projected = projected[index] if reduced.x is None else reduced.x[0][: len(index)]
                sizes = sizes[index] if reduced.size is None else reduced.size[0][: len(index)]
                patch = [patch[i] for i in index]
        return projected, patch, sizes, cls

    def project(self, x):
        x = self.linear(x, "multi_modal_projector.linear_1")
        return self.linear(F.gelu(x), "multi_modal_projector.linear_2")

    def resize(self, pixels, stages):
        """The image after its own cuts, the patch that each patch of it stands for, and the sizes."""
        p = self.config.vision_config.patch_size
        side = pixels.shape[-1] // p
        patch_of, size = list(range(side * side)), torch.ones(side * side)
        for stage in stages:
            for cut in stage.cuts:
                cells = [(i * p, j * p) for i in range(side) for j in range(side)]
                tiles = torch.stack([pixels[:, i : i + p, j : j + p].flatten() for i, j in cells])
                reduced = stage.reduce(View(x=tiles[None], size=size[None]), cut.tokens)
                if reduced.x is None:
                    continue
                side = round(len(reduced.index[0]) ** 0.5)
                tiles = reduced.x[0].view(side, side, 3, p, p)
                pixels = torch.cat([torch.cat(list(row), dim=-1) for row in tiles], dim=-2)
                patch_of, size = [patch_of[i] for i in reduced.index[0].tolist()], reduced.size[0]
        return pixels, patch_of, size

    def places(self, side):
        """The ViT's position embeddings [1 + side², D], interpolated where the image is smaller."""
        place = self.weights["vision_tower.embeddings.position_embedding.weight"]
        whole = round((len(place) - 1) ** 0.5)
        if side == whole:
            return place
        grid = place[1:].view(1, whole, whole, -1).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
        return torch.cat([place[:1], grid[0].flatten(1).T])

    def cut(self, stages, inside, layer, x, order, size, matrices, norms, keys, uniform):
        for stage in stages:
            for cut in stage.cuts:
                if stage.inside != inside or cut.layer != layer:
                    continue
                row, rows = own_attention(stage, "cls", matrices, 0, order)
                shown = keys
                if stage.needs & {"next_cls_row", "next_keys"}:
                    base = f"vision_tower.encoder.layers.{layer}"
                    h = self.layer_norm(x, f"{base}.layer_norm1")
                    shown = self.linear(h, f"{base}.self_attn.k_proj")
                    if "next_cls_row" in stage.needs:
                        q, seen = self.linear(h[0], f"{base}.self_attn.q_proj"), [0, *order]
                        logits = shown[seen] @ q / len(q) ** 0.5
                        if any(each.proportional for each in stages):
                            logits = logits + size[seen].log()
                        row = logits.softmax(dim=0)[1:][None]
                view = View(
                    x=x[order][None],
                    size=size[order][None],
                    attention=row,
                    rows=rows,
                    value_norm=None if norms is None else norms[order][None],
                    keys=None if shown is None else shown[order][None],
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
        """ids without padding; pseudo: from an image's projected CLS to its pseudo CLS. The logits [1 + len(new), V]
        after the prompt and after each new token; the patches of each image that entered the LLM, and those that the
        last layer saw.
        """
        stages = method.stages(shape)
        w, config, contiguous = self.weights, self.config.text_config, method.positions == "contiguous"
        embed = w["language_model.embed_tokens.weight"]
        states, position, owner, rider_of, patch_of, size = [], [], [], [], [], []
        slot, place, image = 0, 0, 0

        def add(state, place, *, image=-1, patch=-1, weight=1.0, rider=-1):
            states.append(state), position.append(place), owner.append(image)
            rider_of.append(rider), patch_of.append(patch), size.append(weight)

        while slot < len(ids):
            if ids[slot] != self.config.image_token_id:
                add(embed[ids[slot]], place)
                slot, place = slot + 1, place + 1
                continue
            uniform = None if uniforms is None else uniforms[image]
            features, patch, sizes, cls = self.see(images[image], stages, uniform)
            for feature, p, weight in zip(features, patch, sizes.tolist(), strict=True):
                add(feature, place + p, image=image, patch=p, weight=weight)
            slot, place = slot + shape.patches, place + shape.patches
            if pseudo is not None:
                add(pseudo(cls), place, rider=image)
                place += method.inserts_pseudo_cls
            image += 1
        prompt = len(states)
        for step, token in enumerate(new):
            add(embed[token], place + step)
        x, owner, rider_of = torch.stack(states), torch.tensor(owner), torch.tensor(rider_of)
        position, patch_of, size = torch.tensor(position), torch.tensor(patch_of), torch.tensor(size)
        T = len(x)
        alive = torch.ones(T, dtype=torch.bool)
        hidden = (rider_of >= 0) & (not method.inserts_pseudo_cls)
        raters = [self.raters(x, owner, rider_of, each, prompt) for each in range(image)]
        matrices, norms, keys, llm_stages = [], None, None, stages_of(stages, "llm")
        for layer in range(config.num_hidden_layers):
            allowed = torch.ones(T, T, dtype=torch.bool).tril() & alive & ~hidden | torch.eye(T, dtype=torch.bool)
            for stage in llm_stages:
                for cut in stage.cuts:
                    if cut.layer != layer:
                        continue
                    if "next_last_row" in stage.needs:
                        places = self.places_of(position, alive, hidden, contiguous)
                        ahead = self.attention(x, layer, places, allowed)[1]
                    for each in range(image):
                        mine = ((owner == each) & alive).nonzero()[:, 0]
                        beside = (rider_of == each).nonzero().flatten().tolist()
                        row, rows = own_attention(stage, "rider", matrices, *beside[:1] or [None], mine)
                        if "last_row" in stage.needs:
                            row = matrices[-1][prompt - 1][mine][None]
                        if "rater_row" in stage.needs:
                            row = torch.stack([matrices[-1][rater][mine] for rater in raters[each]]).mean(dim=0)[None]
                        if "next_last_row" in stage.needs:
                            row = ahead[prompt - 1][mine][None]
                        view = View(
                            x=x[mine][None],
                            size=size[mine][None],
                            attention=row,
                            rows=rows,
                            value_norm=None if norms is None else norms[mine][None],
                            keys=None if keys is None else keys[mine][None],
                            cls=x[beside] if beside else None,
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
                    allowed = allowed & alive | torch.eye(T, dtype=torch.bool)
            if layer == 0:
                patches = [patch_of[alive & (owner == each)].tolist() for each in range(image)]
            out, attention, keys, norms = self.attention(
                x, layer, self.places_of(position, alive, hidden, contiguous), allowed
            )
            matrices = [*matrices, attention]
            base = f"language_model.layers.{layer}"
            x = x + self.linear(out, f"{base}.self_attn.o_proj")
            h = self.rms(x, f"{base}.post_attention_layernorm")
            gate = F.silu(self.linear(h, f"{base}.mlp.gate_proj"))
            x = x + self.linear(gate * self.linear(h, f"{base}.mlp.up_proj"), f"{base}.mlp.down_proj")
        logits = F.linear(self.rms(x[prompt - 1 :], "language_model.norm"), w["lm_head.weight"])
        return logits, patches, [patch_of[alive & (owner == each)].tolist() for each in range(image)]

    def places_of(self, position, alive, hidden, contiguous):
        """The position ids [T]; a hidden pseudo CLS shares that of the first text token behind its image."""
        if not contiguous:
            return position
        return (alive & ~hidden).int().cumsum(0) - 1 + hidden.int()

    def attention(self, x, layer, place, allowed):
        """An LLM layer's attention output [T, H·d], head mean [T, T], head-mean keys before RoPE and value norms."""
        config, base = self.config.text_config, f"language_model.layers.{layer}"
        H, KV = config.num_attention_heads, config.num_key_value_heads
        h = self.rms(x, f"{base}.input_layernorm")
        q, k, v = (
            self.heads(self.linear(h, f"{base}.self_attn.{p}_proj"), n) for p, n in (("q", H), ("k", KV), ("v", KV))
        )
        rotated = self.rope(k, place).repeat_interleave(H // KV, dim=0)
        v = v.repeat_interleave(H // KV, dim=0)
        out, attention = attend(self.rope(q, place), rotated, v, allowed, q.shape[-1] ** -0.5)
        return out, attention, k.mean(dim=0), v.transpose(0, 1).flatten(1).norm(dim=-1)

    def raters(self, x, owner, rider_of, image, prompt):
        """SparseVLM: the text behind an image whose mean share of its tokens' likeness is above the average."""
        mine = (owner == image).nonzero().flatten().tolist()
        behind = [t for t in range(prompt) if owner[t] < 0 and rider_of[t] < 0 and t > mine[-1]]
        if not behind:
            return [prompt - 1]
        share = torch.stack([(x[behind] @ x[visual]).softmax(dim=0) for visual in mine]).mean(dim=0)
        return [t for t, part in zip(behind, share, strict=True) if part > share.mean()] or [prompt - 1]

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
