"""Loss mathematics shared by methods: functions of tensors, one value per item, nothing implicit.

Import from the modules; this package imports none of them, so that it costs nothing.

- `divergences`: KL both ways, Jensen-Shannon, soft cross-entropy, entropy, from logits.
- `bounded`: skew KL both ways, total variation.
- `vocabulary`: the chunked forms behind these for large vocabularies (`chunks`: the walk; `chunk_forms`: one chunk).
- `fused_head`: divergence and cross-entropy from hidden states and the output layer, without the logits.
- `top_k`: against a teacher of whom the k largest logits were kept. `transport`: against another vocabulary (ULD).
- `decoupled`: DKD. `correlation`: DIST.
- `masks`: which items count, and reductions.
- `relations`: distances and angles between samples. `features`: inner layers and attention maps.
- `affinity`: likeness of positions inside an image (SKD, IFVD). `maps`: over positions of maps (CWD, HCL).
- `image_pairs`: likeness of positions across the images of a batch (CIRKD).
- `jaccard`: overlap with hard or soft labels: Jaccard metric losses, soft Jaccard, Dice, Tversky.
- `multicrop`: DINO's cross-entropy between crops of an image, and its centre.

Conventions: temperature, class axis and reduction are keyword arguments without defaults; the teacher is
detached inside unless ``teacher_grad=True``; values are in nats where they are information; masks are bool,
True = counts.
"""
