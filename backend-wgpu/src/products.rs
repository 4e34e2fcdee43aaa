//! To come.
use crate::{Options, context::Context};
use vaecf_core::backend::Result;
#[derive(Debug)]
pub(crate) struct Products;
impl Products {
    pub(crate) async fn new(_: &Context, _: &Options) -> Result<Self> {
        Ok(Self)
    }
}
