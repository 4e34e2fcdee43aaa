// The loss scale after an update, and a clean slate for the next.

struct Params {
    // The scale halves with a skipped update and doubles after `growth` finite ones; 0 keeps it.
    growth: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(1) @binding(0) var<storage, read_write> scale: Scale;
@group(1) @binding(1) var<storage, read_write> bad: u32;

@compute @workgroup_size(1)
fn main() {
    let skip = bad != 0u;
    bad = 0u;
    scale.finite = select(1u, 0u, skip);
    if (skip) {
        scale.skipped += 1u;
    } else {
        scale.good += 1u;
    }
    if (p.growth == 0u) {
        return;
    }
    if (skip) {
        scale.scale *= 0.5;
        scale.good = 0u;
    } else if (scale.good >= p.growth) {
        scale.scale *= 2.0;
        scale.good = 0u;
    }
}
