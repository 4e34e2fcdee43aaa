// What is known of a row of the batch: what its values are multiplied with, and where its events are.
struct Holder {
    factor: f32,
    start: u32,
    end: u32,
}
