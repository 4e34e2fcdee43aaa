// The loss of each row against the full history, and its gradient in place of the logits: what both halves of it share.
//
// A workgroup takes a chunk of a row. The first half leaves what the chunk tells about the loss; the second joins what
// all chunks of the row tell, and writes the gradient. A multinomial row is known by differences to a largest logit:
// those of a chunk to its own, from where they are taken to the row's.

// `LikelihoodKind` of the contract.
const MULTINOMIAL = 0u;
const GAUSSIAN = 1u;

const THREADS = 256u;
const CHUNK = 2048u;

// Below every logit that is finite.
const LOWEST = -3.40282347e38;

struct Params {
    x: Rows,
    kind: u32,
    // Confidence of seen and unseen items.
    seen: f32,
    unseen: f32,
    // The items of these logits: the first, and how many.
    first_item: u32,
    cols: u32,
    // Where they begin, and fours from one row to the next.
    four: u32,
    stride: u32,
    // Chunks of these, of a whole row, and before these.
    chunks: u32,
    row_chunks: u32,
    chunks_before: u32,
    // Where the losses begin, and elements from one to the next.
    loss: u32,
    loss_stride: u32,
}

// What some items of a row tell about its loss: see `Part` in core/src/math.rs.
struct Part {
    // Multinomial: the largest logit, the sum of e^(f - top), and the sum of the history's weights.
    top: f32,
    sum: f32,
    total: f32,
    // The loss; multinomial: what is known of it before all sums are, -sum x (f - top).
    loss: f32,
}

// The events of a chunk, and where its row is in the list of users.
struct Events {
    start: u32,
    end: u32,
    position: u32,
    unused: u32,
}

// Which row of the batch a workgroup is at, which chunk, and where the chunk's logits are.
struct Chunk {
    row: u32,
    number: u32,
    // The first item, and how many.
    first_item: u32,
    count: u32,
    // The first four.
    four: u32,
}

fn chunk_of(group: u32) -> Chunk {
    let row = group / p.chunks;
    let number = group % p.chunks;
    let begin = number * CHUNK;
    let four = p.four + row * p.stride + begin / 4u;
    return Chunk(row, p.chunks_before + number, p.first_item + begin, min(p.cols - begin, CHUNK), four);
}
