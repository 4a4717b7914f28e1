"""Labels are known or absent: batches that grow, videos, padding, several grids, tokens in another order, tokens of no image."""

import itertools

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

import overfocus


class Patches(nn.Module):
    """Self-attention of two heads over patches of 8×8 pixels; `before` sees the images, `after` the tokens."""

    def __init__(self, before=None, after=None):
        super().__init__()
        torch.manual_seed(0)
        self.patches = nn.Conv2d(3, 16, 8, stride=8)
        self.qkv = nn.Linear(16, 48)
        nn.init.normal_(self.qkv.weight, 0, 0.5)
        self.before, self.after = before, after

    def forward(self, images):
        images = images if self.before is None else self.before(images)
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        tokens = tokens if self.after is None else self.after(tokens)
        q, k, v = self.qkv(tokens).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v)


def capture_all(model, *inputs, times=1, **named):
    for module in model.modules():
        module.training = False
    with torch.no_grad(), overfocus.capture(model) as captured:
        for _ in range(times):
            model(*inputs, **named)
    return captured


GROWING = {
    "twice": (lambda x: torch.cat([x, x]), 2, (4, 4)),
    "mirrored": (lambda x: torch.cat([x, x.flip(-1)]), 2, (4, 4)),
    "each three times": (lambda x: x.repeat_interleave(3, 0), 3, (4, 4)),
    "repeated": (lambda x: x.repeat(2, 1, 1, 1), 2, (4, 4)),
    "stacked": (lambda x: torch.stack([x, x.flip(-1)], 1).flatten(0, 1), 2, (4, 4)),
    "expanded": (lambda x: x[:, None].expand(-1, 3, -1, -1, -1).reshape(-1, 3, 32, 32), 3, (4, 4)),
    "crops": (lambda x: torch.cat([x[..., :16, :16], x[..., 16:, 16:], x[..., 8:24, 8:24]]), 3, (2, 2)),
    "with noise": (lambda x: torch.cat([x, torch.randn_like(x)]), 2, (4, 4)),
    "noise first": (lambda x: torch.cat([torch.zeros_like(x), x]), 2, (4, 4)),
}


@pytest.mark.parametrize("name", GROWING)
@pytest.mark.parametrize("batch", [1, 2])
def test_a_batch_that_grows_inside_has_more_images(family, name, batch):
    before, times, grid = GROWING[name]
    (attention,) = capture_all(Patches(before), family.images(32, batch=batch)).maps
    assert (attention.kind, attention.windows, attention.grid) == ("global", 1, grid)
    assert attention.batch == batch * times
    assert attention.shape[1] == 2


MOVED = {
    "mirrored": lambda x: x.flip(-1),
    "upside down": lambda x: x.flip(2),
    "turned": lambda x: torch.rot90(x, 1, (2, 3)),
    "transposed": lambda x: x.transpose(2, 3),
    "transposed in place": lambda x: x.clone().transpose_(2, 3),
    "transposed by einsum": lambda x: torch.einsum("bchw->bcwh", x),
    "transposed by a copy": lambda x: torch.transpose_copy(x, 2, 3),
    "shifted": lambda x: x.roll((8, -16), (2, 3)),
    "shifted by half": lambda x: torch.fft.fftshift(x, dim=(2, 3)),
    "mirrored and sampled up": lambda x: F.interpolate(x.flip(3), scale_factor=2)[..., ::2, ::2],
    "halves exchanged": lambda x: x.slice_scatter(x[..., 16:], 3, 0, 16).slice_scatter(x[..., :16], 3, 16, 32),
}


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("name", MOVED)
def test_places_follow_pixels_that_move_before_the_patches(family, name, batch):
    check_reactions(Patches(MOVED[name]), family.images(32, batch=batch))


def check_reactions(model, images, by_name=False):
    """The key that reacts most to a change of one patch of the image is the one that is labelled with its place."""

    def maps(images):
        return capture_all(model, images=images).maps if by_name else capture_all(model, images).maps

    (plain,) = maps(images)
    for row, column in ((0, 1), (2, 3)):
        changed = images.clone()
        changed[0, :, row * 8 : row * 8 + 8, column * 8 : column * 8 + 8] *= -3
        (other,) = maps(changed)
        assert plain.grid == other.grid == (4, 4)
        reaction = (other.weights.log() - plain.weights.log())[0].abs().median(1).values.sum(0)
        assert int(reaction.argmax()) == row * 4 + column


MOVED_TOKENS = {
    "looked up": lambda x: torch.stack([F.embedding(torch.arange(16).flip(0), image) for image in x]),
    "taken": lambda x: torch.take(x, torch.arange(x.numel()).view_as(x).flip(1)),
    "put": lambda x: x.put(torch.arange(x.numel()), x.flip(1)),
    "scattered by a mask": lambda x: x.masked_scatter(torch.ones_like(x, dtype=torch.bool), x.flip(1)),
    "strided": lambda x: x.contiguous().as_strided((len(x), 4, 4, 16), (256, 16, 64, 1)).flatten(1, 2),
    "transposed by einsum": lambda x: torch.einsum("bhwc->bwhc", x.unflatten(1, (4, 4))).flatten(1, 2),
    "transposed in place": lambda x: x.unflatten(1, (4, 4)).clone().transpose_(1, 2).flatten(1, 2),
    "shifted by half": lambda x: torch.fft.ifftshift(x, dim=1),
    "split and stacked": lambda x: torch.column_stack(torch.hsplit(x, 2)[::-1]),
}


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("name", MOVED_TOKENS)
def test_places_follow_tokens_in_every_spelling(family, name, batch):
    check_reactions(Patches(after=MOVED_TOKENS[name]), family.images(32, batch=batch))


@pytest.mark.parametrize("before", [None, MOVED["mirrored"], MOVED["transposed"]])
def test_images_that_are_given_by_name_are_followed_from_the_start(family, before):
    check_reactions(Patches(before), family.images(32), by_name=True)


def test_blocks_of_an_image_in_no_order_of_rows_and_columns_have_no_grid(family):
    def swapped(x):
        """Two corners have changed places; the rows and columns in the middle are as they were."""
        y = x.clone()
        y[..., :8, :8], y[..., 24:, 24:] = x[..., 24:, 24:], x[..., :8, :8]
        return y

    (attention,) = capture_all(Patches(swapped), family.images(32)).maps
    assert (attention.kind, attention.grid, attention.prefix_tokens) == ("global", None, 0)


def test_a_region_that_is_cut_out_has_no_grid_of_the_image(family):
    def cut(tokens):
        boxes = [torch.tensor([[0.0, 0.0, 2.0, 2.0]])] * len(tokens)
        return torchvision.ops.roi_align(tokens.mT.unflatten(2, (4, 4)).contiguous(), boxes, 3).flatten(2).mT

    (attention,) = capture_all(Patches(after=cut), family.images(32)).maps
    assert (attention.kind, attention.grid, attention.prefix_tokens) == ("global", None, 0)


def test_pixels_that_are_sampled_anew_have_no_grid(family):
    def mirrored(images):
        turn = torch.tensor([[[-1.0, 0, 0], [0, 1, 0]]]).expand(len(images), -1, -1)
        return F.grid_sample(images, F.affine_grid(turn, list(images.shape), align_corners=False), align_corners=False)

    (attention,) = capture_all(Patches(mirrored), family.images(32)).maps
    assert (attention.kind, attention.grid, attention.prefix_tokens) == ("global", None, 0)


def test_crops_in_an_axis_of_their_own_are_images():
    (attention,) = capture_all(Patches(lambda x: x.flatten(0, 1)), torch.randn(2, 5, 3, 32, 32)).maps
    assert (attention.kind, attention.batch, attention.grid) == ("global", 10, (4, 4))


def test_tokens_given_to_a_block_keep_the_models_prefix(make_vit):
    model = make_vit(reg_tokens=2)
    with torch.no_grad(), overfocus.capture(model) as captured:
        model.blocks[0](torch.randn(3, 19, 32))
    (attention,) = captured.maps
    assert (attention.kind, attention.grid, attention.prefix_tokens) == ("global", None, 3)
    (site, _) = captured.coverage
    assert site.note == "no grid"


@pytest.mark.parametrize("tokens", [9, 16, 77])
def test_no_grid_is_made_of_a_number_of_tokens(tokens):
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 1)
    captured = capture_all(model, torch.randn(2, tokens, 16))
    (attention,) = captured.maps
    assert (attention.kind, attention.grid, attention.prefix_tokens) == ("global", None, 0)
    assert [site.note for site in captured.coverage] == ["no grid"]


class Queries(nn.Module):
    """Learnt queries that read the patches and then each other."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 8, stride=8)
        self.queries = nn.Parameter(torch.randn(9, 16))
        self.read, self.talk = (nn.MultiheadAttention(16, 2, batch_first=True) for _ in range(2))

    def forward(self, images):
        tokens = self.patches(images).flatten(2).mT
        queries = self.queries.expand(len(images), -1, -1)
        queries = self.read(queries, tokens, tokens)[0]
        return self.talk(queries, queries, queries)[0]


def test_object_queries_are_no_patches(family):
    reading, talking = capture_all(Queries(), family.images(32)).maps
    assert (reading.kind, reading.grid, reading.shape) == ("class", (4, 4), (2, 2, 9, 16))
    assert (talking.kind, talking.grid, talking.prefix_tokens) == ("global", None, 0)


class Volume(nn.Module):
    """Joint attention over space and time of (b, c, t, h, w)."""

    def __init__(self, channels=3):
        super().__init__()
        torch.manual_seed(0)
        self.patches = nn.Conv3d(channels, 16, (2, 8, 8), stride=(2, 8, 8))
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.qkv = nn.Linear(16, 48)

    def forward(self, video):
        tokens = self.patches(video).flatten(2).mT
        tokens = torch.cat([self.token.expand(len(video), -1, -1), tokens], 1)
        q, k, v = self.qkv(tokens).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v)


@pytest.mark.parametrize("channels", [1, 3])
def test_videos_are_numbered_in_time_rows_and_columns(channels):
    (attention,) = capture_all(Volume(channels), torch.randn(2, channels, 6, 16, 32)).maps
    assert (attention.kind, attention.frames, attention.grid, attention.prefix_tokens) == ("global", 3, (2, 4), 1)
    assert attention.shape == (2, 2, 25, 25)
    assert (
        "attention_distance" not in overfocus.metrics.measure(attention)
        or torch.isnan(overfocus.metrics.measure(attention)["attention_distance"]).all()
    )


MOVED_VIDEOS = {
    "mirrored": (lambda x: x.flip(-1), lambda t, y, x: (t, y, 3 - x)),
    "backwards": (lambda x: x.flip(2), lambda t, y, x: (2 - t, y, x)),
    "shifted in time": (lambda x: x.roll(2, 2), lambda t, y, x: ((t + 1) % 3, y, x)),
}


@pytest.mark.parametrize("name", MOVED_VIDEOS)
def test_places_follow_pixels_of_videos(name):
    """Tokens are put back in the order of the pixels that came."""
    before, place = MOVED_VIDEOS[name]

    class Moved(Volume):
        def forward(self, video):
            return super().forward(before(video))

    video = torch.randn(2, 3, 6, 16, 32)
    (attention,) = capture_all(Moved(), video).maps
    (plain,) = capture_all(Volume(), before(video)).maps
    order = [0] + [1 + sum(a * b for a, b in zip(place(t, y, x), (8, 4, 1), strict=True)) for t, y, x in PLACES]
    torch.testing.assert_close(attention.weights, plain.weights[:, :, order][..., order])
    assert (attention.frames, attention.grid, attention.prefix_tokens) == (3, (2, 4), 1)


PLACES = list(itertools.product(range(3), range(2), range(4)))


def test_attention_over_time_alone_stays_unlabelled():
    model = Patches(lambda x: x.flatten(0, 1), lambda tokens: tokens.unflatten(0, (2, 4)).transpose(1, 2).flatten(0, 1))
    captured = capture_all(model, torch.randn(2, 4, 3, 32, 32))
    (attention,) = captured.maps
    assert (attention.kind, attention.shape, attention.grid) == ("unlabelled", (64, 1, 4, 4), None)
    torch.testing.assert_close(attention.weights.sum(-1), torch.ones(64, 1, 4))
    assert overfocus.metrics.measure(attention) == {}
    (site,) = captured.coverage
    assert site.captured
    assert site.reason.startswith("left out of the metrics: several images are packed into one sequence")


def test_packed_images_are_told_apart_or_left_out():
    class Packed(Patches):
        def forward(self, images):
            tokens = self.patches(images).flatten(2).mT.flatten(0, 1)[None]
            q, k, v = self.qkv(tokens).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
            image = torch.arange(32) // 16
            return F.scaled_dot_product_attention(q, k, v, attn_mask=image[:, None] == image)

    (attention,) = capture_all(Packed(), torch.randn(2, 3, 32, 32)).maps
    assert attention.kind == "unlabelled"


class TwoScales(nn.Module):
    """Tokens of two patch sizes in one sequence."""

    def __init__(self):
        super().__init__()
        self.small, self.large = nn.Conv2d(3, 16, 8, stride=8), nn.Conv2d(3, 16, 16, stride=16)
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.qkv = nn.Linear(16, 48)

    def forward(self, images):
        token = self.token.expand(len(images), -1, -1)
        tokens = torch.cat([token, self.small(images).flatten(2).mT, self.large(images).flatten(2).mT], 1)
        q, k, v = self.qkv(tokens).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v)


def test_two_grids_in_one_sequence_are_no_grid(family):
    captured = capture_all(TwoScales(), family.images(32))
    (attention,) = captured.maps
    assert (attention.kind, attention.grid, attention.prefix_tokens) == ("global", None, 1)
    assert captured.coverage[0].note == "no grid: tokens of several grids in one sequence"


def test_swin_with_its_shift_switched_off(family):
    model = timm.create_model("swin_tiny_patch4_window7_224", img_size=56, embed_dim=16, depths=(2,), num_heads=(1,))
    model, images, block = family.sharpen(model), family.images(56), model.layers[0].blocks[1]
    with torch.no_grad(), overfocus.capture(model) as captured:
        for _ in range(3):
            model(images)
        shift = block.shift_size, block.attn_mask
        block.shift_size, block.attn_mask = (0, 0), None
        model(images)
        block.shift_size, block.attn_mask = shift
        model(images)
    assert [attention.branch for attention in captured.maps[1::2]] == ["shifted"] * 3 + [None, "shifted"]


def test_an_order_of_tokens_that_changes_is_followed(family):
    model, images = Patches(), family.images(32)
    with torch.no_grad(), overfocus.capture(model) as captured:
        for seed in (None, None, None, 0, 1):
            order = None if seed is None else torch.randperm(16, generator=torch.Generator().manual_seed(seed))
            model.after = None if order is None else lambda tokens, order=order: tokens[:, order]
            model(images)
    model.after = None
    with torch.no_grad(), overfocus.capture(model) as plain:
        model(images)
    for attention in captured.maps:
        if attention.grid is not None:  # back in place, or said to be in no known one
            torch.testing.assert_close(attention.weights, plain.maps[0].weights)
    assert [attention.grid for attention in captured.maps[:3]] == [(4, 4)] * 3
    assert captured.maps[4].grid == (4, 4)


def test_an_unseen_change_of_order_gives_no_labels(family):
    """A closure is none of the model's settings: the moves themselves tell."""
    shift = [0]
    model, images = Patches(after=lambda tokens: tokens.roll(shift[0], 1)), family.images(32)
    with torch.no_grad(), overfocus.capture(model) as captured:
        for step in (0, 0, 0, 3, 3):
            shift[0] = step
            model(images)
    assert [attention.kind for attention in captured.maps] == ["global"] * 3 + ["unlabelled", "global"]
    torch.testing.assert_close(captured.maps[4].weights, captured.maps[0].weights)


CHANGING = {
    "padded": (lambda x, shift: F.pad(x, (0, 0, shift, -shift)), 3),
    "written": (lambda x, shift: x.new_zeros(len(x), 20, 16).slice_scatter(x, 1, shift, shift + 16), 4),
    "turned": (lambda x, shift: (rows(x).permute(0, 3, 1, 2).mT if shift else rows(x).permute(0, 3, 1, 2)).flatten(2).mT, 1),
    "einsum": (lambda x, shift: torch.einsum("bhwc->bwhc" if shift else "bhwc->bhwc", rows(x)).flatten(1, 2), 1),
    "token last": (lambda x, shift: torch.cat([x, torch.ones(len(x), 1, 16)][:: -1 if shift else 1], 1), 1),
}


@pytest.mark.parametrize("name", CHANGING)
def test_other_moves_than_those_that_were_traced_give_no_labels(family, name):
    move, to = CHANGING[name]
    shift = [0]
    model, images = Patches(after=lambda tokens: move(tokens, shift[0])), family.images(32)
    with torch.no_grad(), overfocus.capture(model) as captured:
        for step in (0, 0, 0, to, to):
            shift[0] = step
            model(images)
    assert [attention.kind == "unlabelled" for attention in captured.maps] == [False] * 3 + [True, False]
    with torch.no_grad(), overfocus.capture(Patches(after=model.after)) as fresh:
        fresh.tracer.stack.model(images)
    assert captured.maps[4].grid == fresh.maps[0].grid
    torch.testing.assert_close(captured.maps[4].weights, fresh.maps[0].weights)


@pytest.mark.parametrize("how", ["written", "replaced", "loaded"])
def test_a_buffer_that_holds_another_order_is_noticed(family, how):
    model, images = Patches(after=lambda tokens: tokens[:, model.order]), family.images(32)
    model.register_buffer("order", torch.arange(16))
    with torch.no_grad(), overfocus.capture(model) as captured:
        for _ in range(3):
            model(images)
        order = torch.arange(16).roll(5)
        if how == "written":
            model.order.copy_(order)
        elif how == "replaced":
            model.order = order
        else:
            model.load_state_dict(model.state_dict() | {"order": order})
        model(images)
    for attention in captured.maps:
        assert attention.grid == (4, 4)
        torch.testing.assert_close(attention.weights, captured.maps[0].weights)


def test_a_buffer_that_the_forward_itself_writes_is_followed(family):
    def step(tokens):
        model.order.copy_(model.order.roll(1))
        return tokens[:, model.order]

    model = Patches(after=step)
    model.register_buffer("order", torch.arange(16))
    maps = capture_all(model, family.images(32), times=5).maps
    assert [attention.grid for attention in maps] == [(4, 4)] * 5
    for attention in maps:
        torch.testing.assert_close(attention.weights, maps[0].weights)


class Restored(nn.Module):
    """A module inside that is given the order as whole numbers, as a masked autoencoder's decoder is."""

    def forward(self, tokens, order):
        return tokens.gather(1, index=order[..., None].expand(-1, -1, 16))


@pytest.mark.parametrize("batch", [1, 2])
def test_an_order_that_a_module_is_given_is_no_list_of_tokens(family, batch):
    model = Patches(after=lambda tokens: model.restored(tokens, torch.arange(16).flip(0).expand(len(tokens), -1)))
    model.restored = Restored()
    check_reactions(model, family.images(32, batch=batch))


def test_an_order_that_differs_between_images_is_none(family):
    orders = torch.stack([torch.randperm(16, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)])
    model = Patches(after=lambda tokens: tokens.gather(1, orders[..., None].expand(-1, -1, 16)))
    captured = capture_all(model, family.images(32), times=3)
    assert [(attention.kind, attention.grid) for attention in captured.maps] == [("global", None)] * 3
    assert captured.coverage[0].note == "no grid: the order of tokens differs between the images of the batch"


class Padded(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.patches = nn.Conv2d(3, 16, 8, stride=8)
        self.attn = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, images, hidden):
        tokens = self.patches(images).flatten(2).mT
        return self.attn(tokens, tokens, tokens, key_padding_mask=hidden)[0]


def test_padding_is_left_out_where_all_images_have_it(family):
    model, images = Padded(), family.images(32)
    hidden = torch.arange(16).expand(2, 16) > 11
    captured = capture_all(model, images, hidden)
    (attention,) = captured.maps
    assert attention.shape == (2, 2, 12, 12)
    with torch.no_grad():
        tokens = model.patches(images).flatten(2).mT[:, :12]
        expected = model.attn(tokens, tokens, tokens, average_attn_weights=False)[1]
    torch.testing.assert_close(attention.weights, expected)
    assert captured.coverage[0].note == "padding is left out"


def test_padding_that_differs_is_told(family):
    hidden = torch.stack([torch.arange(16) > 11, torch.arange(16) > 13])
    captured = capture_all(Padded(), family.images(32), hidden)
    assert captured.maps[0].shape == (2, 2, 16, 16)
    assert "padding counts in the metrics" in captured.coverage[0].note


MASKS = ["masked_fill", "where", "add", "sub", "written", "queries too", "after", "sdpa", "one mask", "one row", "flex"]


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("spelling", MASKS)
def test_padding_in_every_spelling(family, spelling):
    class Spelled(Patches):
        def forward(self, images):
            tokens = self.patches(images).flatten(2).mT
            q, k, v = self.qkv(tokens).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
            hidden = (torch.arange(16) > 11).expand(len(images), 1, 1, 16)
            if spelling == "sdpa":
                return F.scaled_dot_product_attention(q, k, v, attn_mask=~hidden)
            if spelling in ("one mask", "one row"):
                mask = ~hidden[0, 0].expand(16 if spelling == "one mask" else 1, 16)
                return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            if spelling == "flex":
                mask = create_block_mask(lambda _, __, ___, key: key < 12, None, None, 16, 16, "cpu")
                return flex_attention(q, k, v, block_mask=mask)
            scores = q @ k.mT
            if spelling == "masked_fill":
                scores = scores.masked_fill(hidden, -torch.inf)
            elif spelling == "where":
                scores = torch.where(hidden, torch.tensor(-torch.inf), scores)
            elif spelling == "sub":
                scores = scores - 1e3 * hidden
            elif spelling == "written":
                scores[..., 12:] = -torch.inf
            elif spelling == "queries too":  # whose rows then are uniform
                scores = scores.masked_fill(hidden | hidden.mT, -1e9)
            elif spelling == "after":
                weights = scores.softmax(-1) * ~hidden
                return weights / weights.sum(-1, keepdim=True) @ v
            else:
                scores = scores + hidden * torch.finfo(scores.dtype).min
            return scores.softmax(-1) @ v

    (attention,) = capture_all(Spelled(), family.images(32)).maps
    assert attention.shape == (2, 2, 12, 12)


class Decoder(nn.Module):
    """Half of the patches, mask tokens for the others, all in their places again (a masked autoencoder's decoder)."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.patches = nn.Conv2d(3, 16, 8, stride=8)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, 16))
        self.attn = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, images, restore):
        tokens = self.patches(images).flatten(2).mT
        kept = torch.argsort(restore, 1)[:, :8]
        tokens = tokens.gather(1, kept[..., None].expand(-1, -1, 16))
        tokens = torch.cat([tokens, self.mask_token.repeat(len(tokens), 8, 1)], 1)
        tokens = tokens.gather(1, restore[..., None].expand(-1, -1, 16))
        return self.attn(tokens, tokens, tokens)[0]


@pytest.mark.parametrize("restore", [torch.arange(16), torch.arange(16).flip(0), torch.arange(16).reshape(4, 4).T.flatten()])
def test_mask_tokens_are_no_prefix(family, restore):
    (attention,) = capture_all(Decoder(), family.images(32), restore.expand(2, 16)).maps
    assert (attention.kind, attention.grid, attention.prefix_tokens) == ("global", None, 0)


def test_a_class_token_written_into_a_sequence_is_prefix(family):
    token = nn.Parameter(torch.randn(16))

    def written(tokens):
        sequence = torch.zeros(len(tokens), 17, 16)
        sequence[:, 0] = token
        sequence[:, 1:] = tokens
        return sequence

    (attention,) = capture_all(Patches(after=written), family.images(32)).maps
    assert (attention.kind, attention.grid, attention.prefix_tokens) == ("global", (4, 4), 1)


class OtherImages(Patches):
    """Queries of one image that look at the next."""

    def forward(self, images):
        tokens, others = (self.patches(item).flatten(2).mT for item in (images, images.flip(0)))
        q, k, v = (self.qkv(item).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4) for item in (tokens, others, others))
        return F.scaled_dot_product_attention(q[0], k[1], v[2])


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (lambda: OtherImages(), "its queries and keys belong to different images"),
        (lambda: Patches(lambda images: images.flip(0)), "its images are not in the order of the input"),
        (lambda: Patches(after=lambda tokens: tokens[[1, 0]]), "its images are not in the order of the input"),
    ],
)
def test_maps_of_other_images_stay_unlabelled(family, model, reason):
    captured = capture_all(model(), family.images(32))
    assert [attention.kind for attention in captured.maps] == ["unlabelled"]
    assert captured.coverage[0].reason == f"left out of the metrics: {reason}"


def test_slots_that_mix_all_patches_have_no_place(family):
    mix = torch.randn(16, 6, generator=torch.Generator().manual_seed(0))
    (attention,) = capture_all(Patches(after=lambda tokens: (tokens @ mix).softmax(1).mT @ tokens), family.images(32)).maps
    assert (attention.kind, attention.grid, attention.image_grid, attention.prefix_tokens) == ("global", None, None, 0)


def test_registers_that_begin_at_zero_are_prefix(family):
    registers = nn.Parameter(torch.zeros(1, 4, 16))
    model = Patches(after=lambda tokens: torch.cat([tokens, registers.expand(len(tokens), -1, -1)], 1))
    (attention,) = capture_all(model, family.images(32)).maps
    assert (attention.kind, attention.grid, attention.prefix_tokens) == ("global", (4, 4), 4)


def test_images_of_a_list_each_have_a_size():
    class Listed(Patches):
        def forward(self, images):
            return [super(Listed, self).forward(image[None]) for image in images]

    maps = capture_all(Listed(), [torch.randn(3, 32, 32), torch.randn(3, 16, 48)], times=2).maps
    assert [attention.grid for attention in maps] == [(4, 4), (2, 6)] * 2


def written_into_views(tokens):
    """A class token and patches, copied into parts of an empty tensor."""
    whole = torch.empty(len(tokens), 17, 16)
    whole[:, :1].copy_(torch.ones(1, 1, 16).expand(len(tokens), -1, -1))
    whole[:, 1:].copy_(tokens)
    return whole


@pytest.mark.parametrize(
    "after", [written_into_views, lambda tokens: F.pad(tokens, (0, 0, 1, 0)) + F.pad(torch.ones(1, 1, 16), (0, 0, 0, 16))]
)
@pytest.mark.parametrize("batch", [1, 2])
def test_a_class_token_in_other_spellings_is_prefix(family, after, batch):
    (attention,) = capture_all(Patches(after=after), family.images(32, batch=batch)).maps
    assert (attention.kind, attention.grid, attention.prefix_tokens) == ("global", (4, 4), 1)


def strided_parts(tokens):
    grid = tokens.unflatten(1, (4, 4))
    return torch.cat([grid[:, row::2, column::2].flatten(1, 2) for row in range(2) for column in range(2)])


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_parts_of_the_tokens_behind_each_other_are_windows(family, batch):
    (attention,) = capture_all(Patches(after=strided_parts), family.images(32, batch=batch)).maps
    assert (attention.kind, attention.windows, attention.batch, attention.branch) == ("window", 4, batch, "grid")
    assert attention.partition.tolist() == [[0, 2, 8, 10], [1, 3, 9, 11], [4, 6, 12, 14], [5, 7, 13, 15]]


class Parts(Patches):
    """`attend` is given the queries, keys and values of all patches."""

    def __init__(self, attend):
        super().__init__()
        self.attend = attend

    def forward(self, images):
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        return self.attend(*self.qkv(tokens).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4))


def by_hand(q, k, v):
    return (q @ k.mT).softmax(-1) @ v


@pytest.mark.parametrize("attend", [by_hand, F.scaled_dot_product_attention])
def test_windows_one_after_the_other_know_their_place(family, attend):
    places = torch.arange(16).view(4, 4)
    windows = [places[row : row + 2, column : column + 2].flatten() for row in (0, 2) for column in (0, 2)]
    model = Parts(lambda *tensors: torch.stack([attend(*(tensor[:, :, window] for tensor in tensors)) for window in windows]))
    maps = capture_all(model, family.images(32)).maps
    assert [(one.kind, one.windows, one.grid, one.image_grid) for one in maps] == [("window", 1, (2, 2), (4, 4))] * 4
    assert [one.partition[0].tolist() for one in maps] == [window.tolist() for window in windows]


@pytest.mark.parametrize("attend", [by_hand, F.scaled_dot_product_attention])
@pytest.mark.parametrize("size", [1, 4, 6])
def test_parts_of_the_queries_are_in_no_metric(family, attend, size):
    model = Parts(lambda q, k, v: torch.cat([attend(part, k, v) for part in q.split(size, 2)], 2))
    captured = capture_all(model, family.images(32))
    assert {attention.kind for attention in captured.maps} == {"unlabelled"}
    assert "only part of the queries" in captured.coverage[0].reason


def test_queries_in_another_order_keep_their_own_places(family):
    """Scores of the queries in parts, which have been rolled: each row has the label of its query."""

    def attend(q, k, v):
        q = q.roll(5, 2)
        return torch.cat([part @ k.mT for part in q.chunk(3, 2)], 2).softmax(-1) @ v

    model, images = Parts(attend), family.images(32)
    (attention,) = capture_all(model, images).maps
    q, k, _ = model.qkv(model.patches(images).flatten(2).mT).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
    torch.testing.assert_close(attention.weights, (q @ k.mT).softmax(-1).detach(), rtol=0, atol=1e-6)


UNTOLD = {
    "values in another order": lambda q, k, v: (q, k, v.flip(2)),
    "sums of the queries so far": lambda q, k, v: (q.cumsum(2), k, v),
    "sorted queries": lambda q, k, v: (q.sort(2).values, k, v),
    "keys mixed over all patches": lambda q, k, v: (q, *(F.linear(t.mT, torch.ones(16, 16).tril()).mT for t in (k, v))),
    "the largest keys": lambda q, k, v: (q, k.topk(16, 2).values, v.topk(16, 2).values),
}


@pytest.mark.parametrize("attend", [by_hand, F.scaled_dot_product_attention])
@pytest.mark.parametrize("name", UNTOLD)
def test_tokens_whose_places_are_lost_have_no_grid(family, attend, name):
    captured = capture_all(Parts(lambda *tensors: attend(*UNTOLD[name](*tensors))), family.images(32))
    (attention,) = captured.maps
    assert (attention.kind, attention.prefix_tokens) == ("pooled", 0)
    assert attention.grid is None or attention.key_grid is None
    assert "no grid" in captured.coverage[0].note


def mixed_channels(tokens, other):
    return F.linear(torch.cat([tokens, other], -1), torch.randn(16, 32, generator=torch.Generator().manual_seed(2)))


SUMS = {
    "+": lambda x, other: x + other,
    "in place": lambda x, other: x.clone().add_(other),
    "lerp": lambda x, other: torch.lerp(x, other, 0.3),
    "where": lambda x, other: torch.where(torch.arange(16) < 8, x, other),
    "stack and mean": lambda x, other: torch.stack([x, other]).mean(0),
    "stack and einsum": lambda x, other: torch.einsum("kbnc,k->bnc", torch.stack([x, other]), torch.tensor([0.4, 0.6])),
    "cat and linear": mixed_channels,
    "three": lambda x, other: other + x.roll(2, 1) + x,
}


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", SUMS)
def test_sums_of_two_orders_of_tokens_have_no_grid(family, name, batch):
    captured = capture_all(Patches(after=lambda x: SUMS[name](x, x.flip(1))), family.images(32, batch=batch))
    (attention,) = captured.maps
    assert (attention.kind, attention.grid, attention.prefix_tokens) == ("global", None, 0)
    assert "no grid" in captured.coverage[0].note


@pytest.mark.parametrize("name", SUMS)
def test_tokens_of_several_images_have_no_labels(family, name):
    mixed = Patches(after=lambda x: SUMS[name](x, x.flip(0).roll(1, 0)) if name == "three" else SUMS[name](x, x.roll(1, 0)))
    captured = capture_all(mixed, family.images(32, batch=3))
    assert captured.maps[0].kind == "unlabelled"
    assert "several images" in captured.coverage[0].reason or "packed" in captured.coverage[0].reason


MIXED_PIXELS = {
    "a sum": lambda x: 0.6 * x + 0.4 * x.flip(0),
    "a mean": lambda x: x.mean(0, keepdim=True).expand_as(x),
    "a cut": lambda x: torch.where(torch.arange(32) < 16, x, x.roll(1, 0)),
}


@pytest.mark.parametrize("name", MIXED_PIXELS)
def test_images_that_are_mixed_inside_the_model_have_no_labels(family, name):
    captured = capture_all(Patches(MIXED_PIXELS[name]), family.images(32, batch=3))
    assert captured.maps[0].kind == "unlabelled"


KEPT = {
    "the mean over the batch taken away": lambda x: x - x.mean(0, keepdim=True),
    "the mean over tokens taken away": lambda x: x - x.mean(1, keepdim=True),
    "the first token added to all": lambda x: x[:, :1].expand_as(x) + x,
    "both directions, put back": lambda x: x + (x.flip(1) * 2).flip(1),
    "filtered by frequency": lambda x: torch.fft.ifft(torch.fft.fft(x, dim=1), dim=1).real + x,
    "added where they are": lambda x: x.index_add(1, torch.arange(16), x),
}


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", KEPT)
def test_what_is_the_same_for_all_tokens_or_in_their_order_changes_no_place(family, name, batch):
    (attention,) = capture_all(Patches(after=KEPT[name]), family.images(32, batch=batch)).maps
    assert (attention.kind, attention.grid, attention.prefix_tokens) == ("global", (4, 4), 0)


def rows(tokens):
    return tokens.unflatten(1, (4, 4))


def back(tokens):
    """Tokens of a mirrored image, each at its place in the image."""
    return rows(tokens).flip(2).flatten(1, 2)


ALIGNED = {
    "a sum": lambda x, copy: x + back(copy),
    "the copy first": lambda x, copy: back(copy) + x,
    "a mean": lambda x, copy: torch.stack([back(copy), x]).mean(0),
    "channels": lambda x, copy: mixed_channels(x, back(copy)) / 6,
    "the copy alone": lambda _, copy: back(copy),
    "the mirrored copy alone": lambda _, copy: copy,
}


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("name", ALIGNED)
def test_features_of_a_mirrored_copy_that_are_put_back_are_where_the_images_are(family, name, batch):
    """Test-time augmentation: both views of a place are added."""
    model = Patches(lambda x: torch.cat([x, x.flip(-1)]), lambda x: ALIGNED[name](*x.chunk(2)))
    check_reactions(model, family.images(32, batch=batch))


def test_views_that_attend_to_each_other_stay_unlabelled():
    class Views(Patches):
        def forward(self, images):
            tokens = self.patches(images.flatten(0, 1)).flatten(2).mT
            q, k, v = self.qkv(tokens).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4).unflatten(1, (-1, 2))
            return F.scaled_dot_product_attention(q[:, 0], k[:, 1], v[:, 1])

    captured = capture_all(Views(), torch.randn(2, 2, 3, 32, 32))
    assert captured.maps[0].kind == "unlabelled"
    assert "different images" in captured.coverage[0].reason


def test_features_of_a_mirrored_copy_are_tokens_of_two_places(family):
    def both(images):
        return torch.cat([images, images.flip(-1)])

    for model in (Patches(both, lambda x: x[:2] + x[2:]), Patches(both, lambda x: mixed_channels(*x.chunk(2)))):
        (attention,) = capture_all(model, family.images(32, batch=2)).maps
        assert (attention.kind, attention.batch, attention.grid) == ("global", 2, None)


ADDED_ELSEWHERE = {
    "index_add": lambda x, order: x.index_add(1, order, x),
    "scatter_add": lambda x, order: x.scatter_add(1, order[None, :, None].expand_as(x), x),
    "index_add to nothing": lambda x, order: torch.zeros_like(x).index_add(1, order, x),
}


@pytest.mark.parametrize("name", ADDED_ELSEWHERE)
def test_tokens_added_where_an_index_says(family, name):
    model = Patches(after=lambda x: ADDED_ELSEWHERE[name](x, torch.arange(16).flip(0)))
    (attention,) = capture_all(model, family.images(32, batch=2)).maps
    assert attention.kind == "global"
    if name != "index_add to nothing":
        assert attention.grid is None
        return
    plain = Patches()
    plain.load_state_dict(model.state_dict())
    (expected,) = capture_all(plain, family.images(32, batch=2)).maps
    torch.testing.assert_close(attention.weights, expected.weights)  # put in the grid's order again


FREQUENCIES = {
    "fft": lambda q: torch.fft.fft(q, dim=2).real,
    "rfft": lambda q: torch.fft.rfft(q, dim=2).abs(),
    "a matrix of cosines": lambda q: torch.cos(torch.arange(16.0)[:, None] * (torch.arange(16.0) + 0.5) / 5) @ q,
}


@pytest.mark.parametrize("attend", [by_hand, F.scaled_dot_product_attention])
@pytest.mark.parametrize("name", FREQUENCIES)
def test_queries_that_are_frequencies_are_no_class_tokens(family, attend, name):
    captured = capture_all(Parts(lambda q, k, v: attend(FREQUENCIES[name](q), k, v)), family.images(32))
    (attention,) = captured.maps
    assert (attention.kind, attention.prefix_tokens, attention.grid, attention.key_grid) == ("pooled", 0, None, (4, 4))
    assert "no grid" in captured.coverage[0].note


def test_part_of_the_queries_of_a_grid_of_two_rows_has_no_grid(family):
    one, two = (Parts(lambda q, k, v, n=n: F.scaled_dot_product_attention(q[:, :, :n], k, v)) for n in (1, 2))
    (attention,) = capture_all(one, family.images(16)).maps  # or every second row and column, as in LeViT
    assert (attention.kind, attention.prefix_tokens, attention.grid, attention.key_grid) == ("pooled", 0, None, (2, 2))
    assert capture_all(two, family.images(16)).maps[0].kind == "unlabelled"
