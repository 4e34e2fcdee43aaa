// Rows of the batch. A kernel that has these declares the lists under these names:
//     indptr, users: array<u32>

// Row `position` of the list, which is `first + r` for row r of the batch.
fn row_at(x: Rows, position: u32) -> Row {
    var user = position;
    if ((x.flags & 4u) != 0u) {
        user = users[position];
    }
    if ((x.flags & 1u) == 0u) {
        return Row(user, 0u, 0u);
    }
    return Row(user, indptr[user], indptr[user + 1u]);
}
