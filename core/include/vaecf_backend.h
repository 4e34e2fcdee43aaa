// Made from the Rust sources of vaecf; see docs/plugin.md.
//
// This is the border between vaecf and a backend in a shared library, version 1.
//
// A backend exports one function, `vaecf_backend_v1`, which fills a table of pointers.
// The host keeps the table as long as it runs, and never unloads the library.
//
// # Versions
// The host sets `size` to the bytes that it has room for and `version` to its own, zeroes all else
// and fills in the inputs. The plugin looks at these two first. Where its version differs it sets
// `version` to its own, returns `VAECF_CODE_UNSUPPORTED` and touches nothing else. Otherwise it sets `size`
// to the bytes that it fills: at most those that the host has room for, and at least those up to `top_k`, such as
// `out->size = offsetof(vaecf_backend, logits_rows)`. The host's version comes as an argument, too, so that
// nothing of the table has to be read to tell that it is another one.
// Within a version, fields are only ever appended to `vaecf_backend` and to `vaecf_info`, and a field that is
// not there counts as null or zero. Everything else never changes.
//
// # Null
// `alloc`, `free`, `upload`, `download` and `info` must be there. Of the rest, an operation up to
// `top_k` that is null is reported as unsupported when it is called; one that comes after `top_k`
// is then made of the others, but for captures, marks and ceilings, which are then not used. A null `sync` means
// that there is never anything to wait for.
//
// # Errors
// Functions that return `int32_t` return a `vaecf_code`. After any but `VAECF_CODE_OK` the host asks `last_error`
// for a text. A function must not throw, unwind or jump across the border.
//
// # Threads
// The host makes one call at a time on a `ctx`, but calls may come from different threads in turn.
// Two contexts may be in use at once, on two threads.
//
// # Pointers
// Arguments behind pointers are the host's and valid until the function returns; none is null unless
// its description says so. They hold handles, not addresses: device memory is the plugin's own
// affair. Values for which there is an enumeration come as `uint32_t`, and one that is not in it is
// an error (`VAECF_CODE_OTHER`).
//
// # Noise, to the bit
// `philox(c[4], k[2])`, ten rounds, all in `uint32_t` but the two products, which take 64 bits:
//
// ```text
// for round in 0..10:
//     if round > 0: k[0] += 0x9E3779B9; k[1] += 0xBB67AE85
//     a = c[0] * 0xD2511F53 (64 bits); b = c[2] * 0xCD9E8D57 (64 bits)
//     c = { high(b) ^ c[1] ^ k[0], low(b), high(a) ^ c[3] ^ k[1], low(a) }
// block(n) = philox({ update, user, n, high(seed) }, { low(seed), stream })
// ```
//
// `update` is that of the step buffer, `user` the row of the matrix (not the position in the batch).
// Dropout keeps item `i` where `block(i / 4)[i % 4] < (uint64_t)((double)keep * 4294967296.0)`, and
// keeps everything where `keep >= 1`. Latent noise of units `4 n .. 4 n + 3` is, with `w = block(n)`:
//
// ```text
// for half in { 0, 2 }:
//     radius = sqrt(-2 log(((w[half] >> 8) + 1) / 2^24)); angle = 2 pi (w[half + 1] >> 8) / 2^24
//     eps[4 n + half] = radius cos(angle); eps[4 n + half + 1] = radius sin(angle)
// ```
//
// # The contract
// The contract between the model and a device.
//
// A backend is one in-order queue on one device, with about a dozen fused, model-level operations
// on buffers it owns. The host is written against this alone; the host owns
// a backend, checks every shape once, and is the only caller.
//
// # What a backend may rely on
// - **Order.** Calls take effect in call order. A call may return before its work is done; only
//   `download`, `sync` and `seconds` wait. An upload may be carried out on a
//   second queue, beside the work that was called before it, as long as it takes effect in call order.
// - **Arguments are valid.** Ranges lie inside their buffers, shapes agree,
//   item indices are below the item count, indices ascend within a row, and outputs do not overlap
//   inputs unless an operation says "in place". A matrix takes up all from its first element to its
//   last, so an output never lies between the columns of another argument. The host has
//   checked all of it. Any number of rows may be zero: sums over no rows are zeros.
//   A step and a scale buffer are always there where an operation takes one, in inference, too.
// - **Addresses are fixed.** Nothing is allocated or freed between the first and the last step of
//   a run, and each step issues the same calls with the same arguments; what changes from step to
//   step is in the step buffer (`vaecf_step_params`). So a step can be captured once and replayed.
//
// # What a backend promises
// - **Errors.** An operation returns only what the caller could not foresee: memory, a lost device,
//   a kernel that does not compile. A fault while running comes out of the next `download` or
//   `sync`. An error leaves buffers with unspecified contents but never touches memory outside them.
// - **Handles** are checked: one that was freed, never given out, or of another kind (floats, indices,
//   step, scale) is a fault, never a crash, so that a mistake in a program that embeds this cannot
//   corrupt it. Handles are not given out twice.
// - **Precision.** Sums accumulate in f32 or better, whatever the storage. `VAECF_ROLE_WEIGHT` may be
//   stored as an f32 master and a half copy; only `upload`, `adam` and `broadcast` write it.
// - **Padding.** A matrix of `cols` columns may have a longer `stride`. An operation leaves the cells
//   between as zero as they were allocated, and writes nowhere but in its outputs. The input of
//   `linear` and of the output layer may be a few columns of a wider matrix: what lies beyond them is
//   then some other number, which may be read and must not count.
// - **Noise** is drawn from the generator above, identically everywhere: counter (update, user,
//   element), key (seed, stream). Masks agree bit for bit, normals to rounding. Nothing is stored:
//   the backward pass draws the same noise again.
// - **Determinism.** Where `vaecf_info.deterministic` is true, the same calls give the same bits.
// - **Gradients are sums over the batch**, times `vaecf_scale_state.scale` on backends that scale
//   the loss. 1/batch, 1/loss scale and l2 are applied once, in f32, by `adam`.
//
// # Rows of a batch
// A batch is a window on a list of user indices that lies on the device (`vaecf_rows`). Row `r` is user
// `users[first + r]` of the matrix, where `first = rows.first + step.first` in operations that take
// the step buffer and `rows.first` in those that do not. Per-user outputs (`loss`, `kl`) are written
// at row `first + r` of their matrix, so an epoch's losses are read back once, at its end.

#ifndef VAECF_BACKEND_H
#define VAECF_BACKEND_H

#include <stddef.h>
#include <stdint.h>

// The version of the border that this is.
#define VAECF_VERSION 1

// What a buffer is for; it decides the element type and where it is stored.
enum vaecf_role {
  // Parameters: a master of at least f32, and a half copy where the backend computes in half.
  VAECF_ROLE_WEIGHT = 0,
  // The gradient arena, f32 or better.
  VAECF_ROLE_GRAD = 1,
  // Adam's moments, f32 or better.
  VAECF_ROLE_MOMENT = 2,
  // Activations, logits and their gradients: the backend's working precision.
  VAECF_ROLE_ACT = 3,
  // Per-user losses and scores that are read back: f32 or better.
  VAECF_ROLE_VALUE = 4,
  // `uint32_t`: row starts, item indices, user lists, ranked items.
  VAECF_ROLE_INDEX = 5,
  // Exactly one `vaecf_step_params`, in whatever form the device likes.
  VAECF_ROLE_STEP = 6,
  // Exactly one `vaecf_scale_state`.
  VAECF_ROLE_SCALE = 7,
};

// A hidden layer's curve, by its output.
enum vaecf_curve {
  // y = a.
  VAECF_CURVE_IDENTITY = 0,
  // y = tanh(a), y' = 1 - y^2.
  VAECF_CURVE_TANH = 1,
  // y = max(a, 0), y' = 1 where y > 0.
  VAECF_CURVE_RELU = 2,
};

// The three likelihoods of the family (Liang et al. 2018, section 2.2).
enum vaecf_likelihood_kind {
  // loss = -sum x log softmax(f), df = (sum x) softmax(f) - x.
  VAECF_LIKELIHOOD_KIND_MULTINOMIAL = 0,
  // loss = sum c/2 (x - f)^2, df = c (f - x), with c = `seen` where the item is in the row, else `unseen`.
  VAECF_LIKELIHOOD_KIND_GAUSSIAN = 1,
  // loss = sum log(1 + e^f) - x f, df = sigmoid(f) - x.
  VAECF_LIKELIHOOD_KIND_LOGISTIC = 2,
};

// What lies in host memory that is copied from or to.
enum vaecf_host_type {
  // `float`, converted from or to the buffer's element type.
  VAECF_HOST_TYPE_F32 = 0,
  // `double`, converted from or to the buffer's element type.
  VAECF_HOST_TYPE_F64 = 1,
  // `uint32_t`, of buffers of role `VAECF_ROLE_INDEX`.
  VAECF_HOST_TYPE_U32 = 2,
  // `vaecf_step_params`; `upload` only.
  VAECF_HOST_TYPE_STEP = 3,
  // `vaecf_scale_state`.
  VAECF_HOST_TYPE_SCALE = 4,
};

// What a function returns.
enum vaecf_code {
  // Done, or under way.
  VAECF_CODE_OK = 0,
  // An allocation did not fit.
  VAECF_CODE_OUT_OF_MEMORY = 1,
  // The device is gone; nothing on it can be used again.
  VAECF_CODE_LOST = 2,
  // The operation does not exist here.
  VAECF_CODE_UNSUPPORTED = 3,
  // Anything else; the text of `last_error` says what.
  VAECF_CODE_OTHER = 4,
};

// The element type of masters, moments and gradients.
enum vaecf_master {
  // Single precision.
  VAECF_MASTER_F32 = 0,
  // Double precision: the reference.
  VAECF_MASTER_F64 = 1,
};

// What a backend is and what it promises. Texts are UTF-8 and end with a zero.
typedef struct {
  // Bytes that the host has room for; the rest is zero when it is asked. The fields of version 1 up to
  // `capture` are always there.
  uint32_t size;
  // Element type of masters, moments and gradients, in which checkpoints are written: a `vaecf_master`.
  uint32_t master;
  // Short name, such as `cpu`.
  char name[32];
  // The device as its maker calls it, with driver or thread count.
  char device[128];
  // The working precision: `f64`, `f32`, `tf32`, `f16` or `bf16`. It says how far results may be off.
  char precision[16];
  // Bytes that can still be allocated; `UINT64_MAX` where that is not known.
  uint64_t memory;
  // 1 where that memory is the host's own, so that what the host keeps counts against it, too.
  uint32_t host_memory;
  // Bytes per element of role `VAECF_ROLE_ACT`.
  uint32_t act_bytes;
  // Bytes per element of role `VAECF_ROLE_WEIGHT`, half copy included.
  uint32_t weight_bytes;
  // Row strides of weights and activations are multiples of this many elements; 1 to 4096.
  uint32_t align;
  // The loss scale that a new run starts with; 1 where this backend does not scale.
  float loss_scale;
  // 1 where the same calls give the same bits.
  uint32_t deterministic;
  // 1 where `capture_begin`, `capture_end` and `replay` work.
  uint32_t capture;
} vaecf_info;

// A handle to device memory. Zero is no buffer.
typedef uint32_t vaecf_buf;
// No buffer: an absent optional argument.
#define VAECF_NONE 0

// A window of rows of a sparse matrix (CSR) that lies on the device.
typedef struct {
  // `uint32_t[n_rows + 1]`: where each row starts; `VAECF_NONE` stands for a matrix without events.
  vaecf_buf indptr;
  // `uint32_t[events]`: item indices, ascending within a row.
  vaecf_buf indices;
  // Weights `[events]` of role `VAECF_ROLE_VALUE`; `VAECF_NONE` means all ones.
  vaecf_buf values;
  // `uint32_t`: the matrix row of each batch row; `VAECF_NONE` means row `first + r` itself.
  vaecf_buf users;
  // Position of the window's first row in `users`; `vaecf_step_params.first` is added where there is one.
  uint32_t first;
  // Rows in the window.
  uint32_t count;
} vaecf_rows;

// A row-major matrix: element (r, c) is `buf[offset + r * stride + c]`.
typedef struct {
  // The buffer.
  vaecf_buf buf;
  // Rows.
  uint32_t rows;
  // Columns that count.
  uint32_t cols;
  // Elements from one row to the next, at least `cols`.
  uint32_t stride;
  // First element.
  uint64_t offset;
} vaecf_mat;

// The noise of one operation. See the generator above for the draw itself.
typedef struct {
  // The run's seed.
  uint64_t seed;
  // The stream: dropout and latent noise never share a stream.
  uint32_t stream;
  // Dropout: the probability to keep an element; 1 keeps all and draws nothing.
  // Latent noise: 1 draws, 0 leaves the mean.
  float keep;
} vaecf_noise;

// How the output layer is compared with the history.
typedef struct {
  // A `vaecf_likelihood_kind`.
  uint32_t kind;
  // Confidence of seen items (Gaussian only).
  float seen;
  // Confidence of unseen items (Gaussian only).
  float unseen;
} vaecf_likelihood;

// The operands of the output layer and everything derived from it.
typedef struct {
  // Input of the output layer `[B, H]`, the output of `curve`.
  vaecf_mat g;
  // Weights `[H, I]`.
  vaecf_mat w;
  // Bias `[1, I]`.
  vaecf_mat b;
  // The `vaecf_curve` whose output `g` is.
  uint32_t curve;
  // Scratch for logits `[>= logits_rows(B), I]`; contents are unspecified afterwards.
  vaecf_mat logits;
} vaecf_decode;

// A captured list of calls.
typedef uint32_t vaecf_graph;

// What rank 0 of a group gives out, so that the others find it: see `invite`.
typedef struct {
  // To be passed on as they are.
  uint8_t bytes[128];
} vaecf_invitation;

// A member's place in a group of devices: see `join`.
typedef struct {
  // Which member this is, from 0.
  uint32_t rank;
  // How many members there are.
  uint32_t world;
  // What rank 0's `invite` gave.
  vaecf_invitation invitation;
  // Whether sums may travel in half precision: 0 or 1.
  uint32_t half;
  // Seconds that a wait for other members may last.
  double limit;
  // Becomes other than 0, at any time and from another thread, when another member has failed: no use waiting for
  // it. It can be read as long as the process runs.
  const uint32_t *alarm;
} vaecf_seat;

// A moment in the queue: see `mark`.
typedef uint64_t vaecf_mark;

// What a device does at best, measured on it: the limits that a bench puts its figures beside.
typedef struct {
  // Bytes per second, read and written together, of a copy within the device's memory, or a pass over it in
  // place, that is far larger than its caches.
  double copy;
  // FLOP per second of a large matrix product in the working precision.
  double products;
} vaecf_ceilings;

// What a backend is made of: filled by the function `vaecf_backend_v1`, in the order of the fields.
typedef struct {
  // In: bytes that the host has room for. Out: bytes that the plugin filled, never more.
  uint32_t size;
  // In: the host's version. Out: the plugin's.
  uint32_t version;
  // In: which device, from 0.
  uint32_t device;
  // In: threads of the host to use; 0 where the plugin decides.
  uint32_t threads;
  // In: the working precision that was asked for, or `auto`; ends with a zero.
  char precision[16];
  // The backend's own state, the first argument of everything below; not null.
  void *ctx;
  // Copies the text of the last error to `text`, at most `len` bytes with the zero at the end, and
  // returns how many bytes the whole text has without it. With a null `ctx` it is the text of the last
  // opening that failed: this entry is filled before `vaecf_backend_v1` returns an error.
  size_t (*last_error)(void *ctx, char *text, size_t len);
  // Ends the backend and gives back all that it holds.
  void (*destroy)(void *ctx);
  // What this backend is. Cheap, and constant but for `vaecf_info.memory`.
  int32_t (*info)(void *ctx, vaecf_info *info);
  // `len` elements, zeroed. The element type follows from the role.
  int32_t (*alloc)(void *ctx, uint32_t role, uint64_t len, vaecf_buf *buf);
  // Gives a buffer back, once the queue has passed this point. Freeing `VAECF_NONE` does nothing.
  void (*free)(void *ctx, vaecf_buf buf);
  // Copies host elements to `dst[at..]`. The host memory may be reused on return.
  //
  // `src` is `len` elements of a `vaecf_host_type`; it may be null where `len` is 0.
  int32_t (*upload)(void *ctx,
                    vaecf_buf dst,
                    uint64_t at,
                    uint32_t host_type,
                    const void *src,
                    uint64_t len);
  // Copies `src[at..]` to host memory; waits for everything before it that wrote there.
  //
  // `dst` is `len` elements of a `vaecf_host_type`; it may be null where `len` is 0.
  int32_t (*download)(void *ctx,
                      vaecf_buf src,
                      uint64_t at,
                      uint32_t host_type,
                      void *dst,
                      uint64_t len);
  // Waits until all work is done, and returns the first fault of it.
  int32_t (*sync)(void *ctx);
  // First layer, `y[B, H] = curve(d W + b)`, a gather over sparse rows.
  //
  // `n = x / |x|_2` over the whole row (an empty row stays zero); `d = n * m / keep`, with `m` one
  // Bernoulli(keep) draw per (update, user, item). `w` is `[I, H]`, `b` is `[1, H]`.
  // Liang et al. 2018, eq. 2 with the input dropout of section 2.4.
  int32_t (*encode_sparse)(void *ctx,
                           const vaecf_rows *x,
                           const vaecf_mat *w,
                           const vaecf_mat *b,
                           uint32_t curve,
                           const vaecf_noise *noise,
                           vaecf_buf step,
                           const vaecf_mat *y);
  // Gradient of the first layer: `dw[I, H] = d^T dy`, `db[1, H] = colsum(dy)`, every cell written
  // (zero for items outside the batch). The mask is drawn again.
  int32_t (*encode_sparse_grad)(void *ctx,
                                const vaecf_rows *x,
                                const vaecf_mat *dy,
                                const vaecf_noise *noise,
                                vaecf_buf step,
                                const vaecf_mat *dw,
                                const vaecf_mat *db);
  // `y[B, N] = curve(x[B, M] w[M, N] + b[1, N])`.
  int32_t (*linear)(void *ctx,
                    const vaecf_mat *x,
                    const vaecf_mat *w,
                    const vaecf_mat *b,
                    uint32_t curve,
                    const vaecf_mat *y);
  // `dw[M, N] = x[B, M]^T dy[B, N]`, `db[1, N] = colsum(dy)`.
  int32_t (*linear_grad_weight)(void *ctx,
                                const vaecf_mat *x,
                                const vaecf_mat *dy,
                                const vaecf_mat *dw,
                                const vaecf_mat *db);
  // `dx[B, M] = (dy[B, N] w[M, N]^T) * curve'(x)`, where `x[B, M]` is the output of `curve`.
  int32_t (*linear_grad_input)(void *ctx,
                               const vaecf_mat *dy,
                               const vaecf_mat *w,
                               const vaecf_mat *x,
                               uint32_t curve,
                               const vaecf_mat *dx);
  // `stats[B, 2K] = [mu | logvar]`; `z[B, K] = mu + exp(logvar / 2) eps`, one normal draw per
  // (update, user, k); `kl[first + r] = 1/2 sum (exp(logvar) + mu^2 - 1 - logvar)`.
  // Liang et al. 2018, eq. 5 and 6. Of `x` only the users count.
  int32_t (*sample_latent)(void *ctx,
                           const vaecf_rows *x,
                           const vaecf_mat *stats,
                           const vaecf_noise *noise,
                           vaecf_buf step,
                           const vaecf_mat *z,
                           const vaecf_mat *kl);
  // `dmu = dz + beta mu`, `dlogvar = 1/2 dz eps exp(logvar / 2) + beta / 2 (exp(logvar) - 1)`,
  // written to `dstats[B, 2K]`; `beta` is that of the step, times the loss scale.
  int32_t (*sample_latent_grad)(void *ctx,
                                const vaecf_rows *x,
                                const vaecf_mat *stats,
                                const vaecf_mat *dz,
                                const vaecf_noise *noise,
                                vaecf_buf step,
                                vaecf_buf scale,
                                const vaecf_mat *dstats);
  // The loss of each row against the FULL history, and its gradient in place.
  //
  // `loss[first + r]` as in `vaecf_likelihood_kind`; `logits[B, I]` becomes its gradient, times the loss
  // scale. The softmax is computed from differences to the row's maximum.
  int32_t (*likelihood)(void *ctx,
                        const vaecf_rows *x,
                        const vaecf_likelihood *kind,
                        const vaecf_mat *logits,
                        vaecf_buf step,
                        vaecf_buf scale,
                        const vaecf_mat *loss);
  // One Adam update (Kingma and Ba 2015, algorithm 1) over the whole arena of `len` elements.
  //
  // `g = dw * grad_factor / scale`, plus `l2 * w` for the first `decayed` elements (weights; biases
  // come after); `m = beta1 m + (1 - beta1) g`, `v = beta2 v + (1 - beta2) g^2`, and
  // `w -= lr (m / correction1) / (sqrt(v / correction2) + eps)`. Where any gradient is not finite nothing
  // but `scale` changes: `skipped` grows, and `finite` is 0; otherwise `good` grows, and `finite` is 1.
  int32_t (*adam)(void *ctx,
                  vaecf_buf w,
                  vaecf_buf dw,
                  vaecf_buf m,
                  vaecf_buf v,
                  uint64_t len,
                  uint64_t decayed,
                  vaecf_buf step,
                  vaecf_buf scale);
  // The `k` best items of each row of `scores[B, I]`, best first, to `items[r * k..]` and
  // `values[r * k..]`.
  //
  // Items of `seen` are left out; ties go to the smaller index; NaN ranks below everything. Where
  // fewer than `k` items are left the rest is `UINT32_MAX` with the value -inf.
  int32_t (*top_k)(void *ctx,
                   const vaecf_mat *scores,
                   const vaecf_rows *seen,
                   uint32_t k,
                   vaecf_buf items,
                   vaecf_buf values);
  // Rows of logits that `decode_loss_grad` and `recommend` want as scratch
  // for a batch, given the number of items; never falling as the batch grows. A backend that works
  // in blocks asks for one block.
  uint32_t (*logits_rows)(void *ctx, uint32_t batch, uint32_t items);
  // Output layer, likelihood and their gradients: `loss`, `dw[H, I]`, `db[1, I]`, and
  // `dg[B, H]`, the gradient before `decode.curve`.
  int32_t (*decode_loss_grad)(void *ctx,
                              const vaecf_rows *x,
                              const vaecf_decode *decode,
                              const vaecf_likelihood *kind,
                              vaecf_buf step,
                              vaecf_buf scale,
                              const vaecf_mat *loss,
                              const vaecf_mat *dw,
                              const vaecf_mat *db,
                              const vaecf_mat *dg);
  // Output layer and `top_k`.
  int32_t (*recommend)(void *ctx,
                       const vaecf_decode *decode,
                       const vaecf_rows *seen,
                       uint32_t k,
                       vaecf_buf items,
                       vaecf_buf values);
  // Calls from here to `capture_end` are recorded, not run. The trainer captures a step
  // for each size of batch, and set of buffers where data are streamed, the second time it comes, and replays it from
  // then on: what a device prepares with a first call is prepared by then. A graph
  // lives as long as the backend. Legal inside: every operation; not legal: `alloc`, `free`, `upload`,
  // `download`, `sync`, `mark`, `seconds`, `ceilings`, `join`, `broadcast`.
  int32_t (*capture_begin)(void *ctx);
  // Ends the recording.
  int32_t (*capture_end)(void *ctx, vaecf_graph *graph);
  // Runs the recorded calls again, with the step buffer as it is now.
  int32_t (*replay)(void *ctx, vaecf_graph graph);
  // Joins a group of devices, and returns when all of it have. What follows waits for other members no longer than
  // the limit of `seat`, nor after its alarm; then, in this call or in the next that waits, there is a
  // fault, which after the alarm is `vaecf_fault.Alarm`. A world of one is a group, too. Not legal inside a capture.
  int32_t (*join)(void *ctx, const vaecf_seat *seat);
  // `buf[at..at + len]`, of role `VAECF_ROLE_GRAD`, becomes its sum over the group, the same bits on every member.
  // All of them make this call with the same arguments but for the handle. It may be carried out beside the work
  // called after it, as long as it takes effect in call order. Legal inside a capture, if every member's is
  // inside one.
  int32_t (*all_reduce)(void *ctx, vaecf_buf buf, uint64_t at, uint64_t len);
  // `buf[..len]`, of role `VAECF_ROLE_WEIGHT`, `VAECF_ROLE_GRAD` or `VAECF_ROLE_MOMENT`, becomes that of rank `root`, a half
  // copy included. Not legal inside a capture.
  int32_t (*broadcast)(void *ctx, vaecf_buf buf, uint64_t len, uint32_t root);
  // A moment in the queue: when the device has done all that was called before it. Legal everywhere but inside
  // a capture. The latest 4,096 marks can be asked about; older ones are forgotten, so that none has to be given
  // back.
  int32_t (*mark)(void *ctx, vaecf_mark *mark);
  // Seconds by the device's clock from one mark to another, negative where `to` came first. Waits for both.
  // A mark that is forgotten or was never given is a fault.
  int32_t (*seconds)(void *ctx, vaecf_mark from, vaecf_mark to, double *seconds);
  // What this very device does at best, measured now, which takes some seconds at most and memory that is given
  // back. Not legal inside a capture.
  int32_t (*ceilings)(void *ctx, vaecf_ceilings *ceilings);
  // What the others of a group need to `join` rank 0, which is what rank 0 makes here; other ranks only
  // say whether they could join. A backend without collectives of its own, or without what these need, says so by
  // `vaecf_fault.Unsupported`, and sums pass through the host's memory.
  int32_t (*invite)(void *ctx, uint32_t rank, vaecf_invitation *invitation);
} vaecf_backend;

// Everything that changes from one update to the next: one small buffer, uploaded before each step.
typedef struct {
  // Number of this update, from 1: Adam's t, and the noise counter.
  uint32_t update;
  // Added to `vaecf_rows.first`.
  uint32_t first;
  // Learning rate.
  double lr;
  // Weight of the KL term in this update.
  double beta;
  // 1 / (users of the whole batch): turns summed gradients into means.
  double grad_factor;
  // The l2 coefficient: adds `l2 * w` to the gradient of every decayed weight.
  double l2;
  // Adam: decay of the first moment.
  double beta1;
  // Adam: decay of the second moment.
  double beta2;
  // Adam: added to the root of the second moment.
  double eps;
  // Adam: 1 - beta1^update.
  double correction1;
  // Adam: 1 - beta2^update.
  double correction2;
} vaecf_step_params;

// The dynamic loss scale (Micikevicius et al. 2018, section 3.2), kept by the device: `adam` reads and
// writes it, nothing else does. A backend that scales starts at `vaecf_info.loss_scale`, halves the scale
// with every update that is skipped, and doubles it when its number of finite updates in a row is
// reached; both set `good` to zero. The whole state is in the run's checkpoint.
typedef struct {
  // Factor on the loss's gradient; 1 where the backend does not scale.
  float scale;
  // Finite updates since the scale last changed.
  uint32_t good;
  // Updates skipped because a gradient was not finite.
  uint32_t skipped;
  // Whether the last update was finite (1) or skipped (0).
  uint32_t finite;
} vaecf_scale_state;

#if defined(_WIN32)
#define VAECF_EXPORT __declspec(dllexport)
#else
#define VAECF_EXPORT __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

// The function that a plugin exports: opens a backend and fills the table with it. Returns a
// `vaecf_code`.
VAECF_EXPORT int32_t vaecf_backend_v1(uint32_t host_version, vaecf_backend *out);

#ifdef __cplusplus
}
#endif

#endif
