// What activations and the weights that operations read are stored in: single precision.

// Four numbers, as they are stored.
alias Four = vec4<f32>;

fn wide(stored: Four) -> vec4<f32> {
    return stored;
}

fn narrow(x: vec4<f32>) -> Four {
    return x;
}

// The first `count` of `now`, and the rest of `old`.
fn merge_four(old: Four, now: Four, count: u32) -> Four {
    return merge(old, now, count);
}
