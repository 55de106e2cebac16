"""The networks of the coverage table: one or more of every family, small where there is a choice.

Sizes are the smallest at which the architecture still has its usual grids; transformers of a fixed
size are built for the size that is stated.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Architecture:
    """A network of torchvision or timm.

    Attributes:
        name: ``torchvision:NAME`` or ``timm:NAME``.
        family: what kind of network it is.
        size: (H, W) of the images, pixels.
        options: of its constructor.
    """

    name: str
    family: str
    size: tuple[int, int] = (64, 64)
    options: dict[str, Any] = field(default_factory=dict)


def _family(family: str, *names: str, side: int = 64, **options: Any) -> list[Architecture]:
    return [Architecture(name, family, (side, side), options) for name in names]


PLAIN = {"init_weights": False}
ARCHITECTURES: dict[str, Architecture] = {
    a.name: a
    for a in (
        *_family("residual", "torchvision:resnet18", "torchvision:resnet50", "timm:resnet26d"),
        *_family("residual", "torchvision:wide_resnet50_2", "timm:resnetv2_50", "timm:gernet_s"),
        *_family("residual, grouped", "torchvision:resnext50_32x4d", "timm:resnet50_gn"),
        *_family("chain", "torchvision:alexnet", "torchvision:vgg11", "torchvision:vgg16_bn"),
        *_family("dense", "torchvision:densenet121", "timm:densenetblur121d"),
        *_family("inception", "torchvision:googlenet", side=96, aux_logits=False, **PLAIN),
        *_family("inception", "torchvision:inception_v3", side=128, aux_logits=False, **PLAIN),
        *_family("inception", "timm:inception_v4", "timm:inception_resnet_v2", side=128),
        *_family("NAS", "torchvision:mnasnet1_0", "timm:fbnetc_100", "timm:fbnetv3_b"),
        *_family("NAS", "timm:hardcorenas_a", "timm:tinynet_e", "timm:lcnet_050"),
        *_family("NAS", "timm:nasnetalarge", "timm:pnasnet5large", side=96),
        *_family("depthwise", "torchvision:mobilenet_v2", "torchvision:mobilenet_v3_large"),
        *_family("depthwise", "timm:mobilenetv4_conv_small", "timm:mixnet_s", "timm:rexnet_100"),
        *_family("depthwise", "torchvision:efficientnet_b0", "timm:efficientnet_lite0"),
        *_family("depthwise", "torchvision:efficientnet_b4", side=96),
        *_family("depthwise", "torchvision:efficientnet_v2_s", "timm:efficientnetv2_rw_t"),
        *_family("depthwise", "timm:xception41", "timm:legacy_xception", side=96),
        *_family("shuffle", "torchvision:shufflenet_v2_x1_0", "torchvision:squeezenet1_1"),
        *_family("ghost", "timm:ghostnet_100", "timm:ghostnetv2_100", "timm:repghostnet_050"),
        *_family("attention in CNNs", "timm:legacy_seresnet18", "timm:seresnext26d_32x4d"),
        *_family("attention in CNNs", "timm:skresnet18", "timm:resnest14d", "timm:ecaresnet26t"),
        *_family("multi-scale", "timm:res2net50_26w_4s", "timm:hrnet_w18_small", "timm:dla34"),
        *_family("dual path, cross stage", "timm:dpn68", "timm:cspresnet50", "timm:cspdarknet53"),
        *_family("one-shot aggregation", "timm:ese_vovnet19b_dw", "timm:hgnetv2_b0"),
        *_family("one-shot aggregation", "timm:selecsls42b"),
        *_family("RegNet", "torchvision:regnet_x_400mf", "timm:regnety_002", "timm:nf_regnet_b0"),
        *_family("normaliser-free", "timm:nf_resnet50", "timm:eca_nfnet_l0", "timm:dm_nfnet_f0"),
        *_family("re-parameterised", "timm:repvgg_a0", "timm:mobileone_s0", "timm:fastvit_t8"),
        *_family("ConvNeXt", "torchvision:convnext_tiny", "timm:convnextv2_atto"),
        *_family("ConvNeXt", "timm:inception_next_atto", "timm:poolformer_s12"),
        *_family("hybrid", "timm:mobilevit_xxs", "timm:edgenext_xx_small", side=128),
        *_family("hybrid", "timm:coatnet_nano_rw_224", "timm:levit_128s", side=224),
        *_family("ViT", "timm:vit_tiny_patch16_224", "timm:deit_tiny_patch16_224", side=224),
        *_family("ViT", "timm:deit_tiny_distilled_patch16_224", side=224),
        *_family("ViT", "timm:vit_small_patch14_reg4_dinov2", side=112, img_size=112),
        *_family("ViT", "torchvision:vit_b_16", side=64, image_size=64),
        *_family("Swin", "timm:swin_tiny_patch4_window7_224", "torchvision:swin_t", side=224),
        *_family("Swin", "timm:swinv2_cr_tiny_ns_224", side=224),
        *_family("other tokens", "timm:cait_xxs24_224", "timm:pit_ti_224", side=224),
        *_family("other tokens", "timm:mixer_s32_224", "timm:pvt_v2_b0", side=224),
    )
}
