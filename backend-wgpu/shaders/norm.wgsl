// The norm of a row: of the kernels that have `values`, and sums over a group.

// 1 / |x| of a row, by every thread; zero for an empty row.
fn inverse_norm(x: Rows, row: Row, thread: u32) -> f32 {
    var square = f32(row.end - row.start);
    if ((x.flags & 2u) != 0u) {
        var sum = 0.0;
        for (var event = row.start + thread; event < row.end; event += THREADS) {
            sum += values[event] * values[event];
        }
        square = group_sum(sum, thread);
    }
    return inverse_root(square);
}
