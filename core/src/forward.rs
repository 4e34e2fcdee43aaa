//! Forwarding, for backends that wrap another one and change a few of its operations.

use crate::backend::Backend;

/// A backend whose type is not known is one, too.
impl<B: Backend + ?Sized> Backend for Box<B> {
    crate::forward_backend! { self, (**self);
        info alloc free upload download sync
        encode_sparse encode_sparse_grad linear linear_grad_weight linear_grad_input
        sample_latent sample_latent_grad likelihood adam top_k
        logits_rows scratch longest_list decode_loss_grad recommend
        capture_begin capture_end replay mark seconds ceilings invite join all_reduce broadcast lend
    }
}

/// Implements the named methods of [`Backend`](crate::backend::Backend) by calling another backend.
///
/// ```
/// use vaecf_core::{backend::*, forward_backend};
///
/// /// Counts the products of another backend.
/// struct Counting<B> {
///     inner: B,
///     products: u64,
/// }
///
/// impl<B: Backend> Backend for Counting<B> {
///     forward_backend! { self, self.inner;
///         info alloc free upload download sync
///         encode_sparse encode_sparse_grad linear_grad_weight linear_grad_input
///         sample_latent sample_latent_grad likelihood adam top_k
///     }
///
///     fn linear(&mut self, x: Mat, w: Mat, b: Mat, curve: Curve, y: Mat) -> Result {
///         self.products += 1;
///         self.inner.linear(x, w, b, curve, y)
///     }
/// }
/// ```
///
/// A provided method that is not named keeps its default, which calls the required ones: here every
/// product of the output layer is counted, too.
#[macro_export]
macro_rules! forward_backend {
    ($self:ident, $inner:expr; $($method:ident)*) => {
        $($crate::forward_backend!(@ $method $self $inner);)*
    };
    (@ info $self:ident $inner:expr) => {
        fn info(&$self) -> $crate::backend::Info {
            $inner.info()
        }
    };
    (@ alloc $self:ident $inner:expr) => {
        fn alloc(&mut $self, role: $crate::backend::Role, len: u64) -> $crate::backend::Result<$crate::backend::Buf> {
            $inner.alloc(role, len)
        }
    };
    (@ free $self:ident $inner:expr) => {
        fn free(&mut $self, buf: $crate::backend::Buf) {
            $inner.free(buf);
        }
    };
    (@ upload $self:ident $inner:expr) => {
        fn upload(
            &mut $self,
            dst: $crate::backend::Buf,
            at: u64,
            src: $crate::backend::Host<'_>,
        ) -> $crate::backend::Result {
            $inner.upload(dst, at, src)
        }
    };
    (@ download $self:ident $inner:expr) => {
        fn download(
            &mut $self,
            src: $crate::backend::Buf,
            at: u64,
            dst: $crate::backend::HostMut<'_>,
        ) -> $crate::backend::Result {
            $inner.download(src, at, dst)
        }
    };
    (@ logits_rows $self:ident $inner:expr) => {
        fn logits_rows(&$self, batch: u32, items: u32) -> u32 {
            $inner.logits_rows(batch, items)
        }
    };
    (@ scratch $self:ident $inner:expr) => {
        fn scratch(&$self, batch: u32, items: u32, units: u32) -> u64 {
            $inner.scratch(batch, items, units)
        }
    };
    (@ longest_list $self:ident $inner:expr) => {
        fn longest_list(&$self) -> u64 {
            $inner.longest_list()
        }
    };
    (@ lend $self:ident $inner:expr) => {
        fn lend(&mut $self, buf: $crate::backend::Buf, at: u64, len: u64) -> Option<$crate::backend::HostMut<'_>> {
            $inner.lend(buf, at, len)
        }
    };
    (@ sync $s:ident $i:expr) => { $crate::forward_backend!(@@ $s $i; sync() -> ()); };
    (@ encode_sparse $s:ident $i:expr) => {
        $crate::forward_backend!(@@ $s $i; encode_sparse(x: Rows, w: Mat, b: Mat, curve: Curve, noise: Noise, step: Buf, y: Mat) -> ());
    };
    (@ encode_sparse_grad $s:ident $i:expr) => {
        $crate::forward_backend!(@@ $s $i; encode_sparse_grad(x: Rows, dy: Mat, noise: Noise, step: Buf, dw: Mat, db: Mat) -> ());
    };
    (@ linear $s:ident $i:expr) => {
        $crate::forward_backend!(@@ $s $i; linear(x: Mat, w: Mat, b: Mat, curve: Curve, y: Mat) -> ());
    };
    (@ linear_grad_weight $s:ident $i:expr) => {
        $crate::forward_backend!(@@ $s $i; linear_grad_weight(x: Mat, dy: Mat, dw: Mat, db: Mat) -> ());
    };
    (@ linear_grad_input $s:ident $i:expr) => {
        $crate::forward_backend!(@@ $s $i; linear_grad_input(dy: Mat, w: Mat, x: Mat, curve: Curve, dx: Mat) -> ());
    };
    (@ sample_latent $s:ident $i:expr) => {
        $crate::forward_backend!(@@ $s $i; sample_latent(x: Rows, stats: Mat, noise: Noise, step: Buf, z: Mat, kl: Mat) -> ());
    };
    (@ sample_latent_grad $s:ident $i:expr) => {
        $crate::forward_backend!(@@ $s $i; sample_latent_grad(x: Rows, stats: Mat, dz: Mat, noise: Noise, step: Buf, scale: Buf, dstats: Mat) -> ());
    };
    (@ likelihood $s:ident $i:expr) => {
        $crate::forward_backend!(@@ $s $i; likelihood(x: Rows, kind: Likelihood, logits: Mat, step: Buf, scale: Buf, loss: Mat) -> ());
    };
    (@ adam $s:ident $i:expr) => {
        $crate::forward_backend!(@@ $s $i; adam(w: Buf, dw: Buf, m: Buf, v: Buf, len: u64, decayed: u64, step: Buf, scale: Buf) -> ());
    };
    (@ top_k $s:ident $i:expr) => {
        $crate::forward_backend!(@@ $s $i; top_k(scores: Mat, seen: Rows, k: u32, items: Buf, values: Buf) -> ());
    };
    (@ decode_loss_grad $s:ident $i:expr) => {
        $crate::forward_backend!(@@ $s $i; decode_loss_grad(x: Rows, decode: Decode, kind: Likelihood, step: Buf, scale: Buf, loss: Mat, dw: Mat, db: Mat, dg: Mat) -> ());
    };
    (@ recommend $s:ident $i:expr) => {
        $crate::forward_backend!(@@ $s $i; recommend(decode: Decode, seen: Rows, k: u32, items: Buf, values: Buf) -> ());
    };
    (@ capture_begin $s:ident $i:expr) => { $crate::forward_backend!(@@ $s $i; capture_begin() -> ()); };
    (@ capture_end $s:ident $i:expr) => { $crate::forward_backend!(@@ $s $i; capture_end() -> $crate::backend::Graph); };
    (@ replay $s:ident $i:expr) => { $crate::forward_backend!(@@ $s $i; replay(graph: Graph) -> ()); };
    (@ mark $s:ident $i:expr) => { $crate::forward_backend!(@@ $s $i; mark() -> $crate::backend::Mark); };
    (@ seconds $s:ident $i:expr) => { $crate::forward_backend!(@@ $s $i; seconds(from: Mark, to: Mark) -> f64); };
    (@ ceilings $s:ident $i:expr) => { $crate::forward_backend!(@@ $s $i; ceilings() -> $crate::backend::Ceilings); };
    (@ invite $s:ident $i:expr) => { $crate::forward_backend!(@@ $s $i; invite(rank: u32) -> $crate::backend::Invitation); };
    (@ join $s:ident $i:expr) => { $crate::forward_backend!(@@ $s $i; join(seat: Seat) -> ()); };
    (@ all_reduce $s:ident $i:expr) => { $crate::forward_backend!(@@ $s $i; all_reduce(buf: Buf, at: u64, len: u64) -> ()); };
    (@ broadcast $s:ident $i:expr) => { $crate::forward_backend!(@@ $s $i; broadcast(buf: Buf, len: u64, root: u32) -> ()); };
    (@@ $self:ident $inner:expr; $name:ident($($arg:ident: $kind:ident),*) -> $out:ty) => {
        fn $name(&mut $self, $($arg: $crate::forward_backend!(% $kind)),*) -> $crate::backend::Result<$out> {
            $inner.$name($($arg),*)
        }
    };
    (% u32) => { u32 };
    (% u64) => { u64 };
    (% $kind:ident) => { $crate::backend::$kind };
}

/// A backend that is lent is one, too.
impl<B: crate::backend::Backend + ?Sized> crate::backend::Backend for &mut B {
    forward_backend! { self, (**self);
        info alloc free upload download sync
        encode_sparse encode_sparse_grad linear linear_grad_weight linear_grad_input
        sample_latent sample_latent_grad likelihood adam top_k
        logits_rows scratch longest_list decode_loss_grad recommend
        capture_begin capture_end replay mark seconds ceilings invite join all_reduce broadcast lend
    }
}
