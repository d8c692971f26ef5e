//! The macros of Podyard: `#[derive(Columns)]` and `#[derive(Resource)]` make
//! a struct a resource, `#[actions]` finds its actions, and `#[stages]` makes
//! an impl block a task. What they write is plain Rust against the traits of
//! `podyard`; what they refuse they refuse at the token, in a sentence that
//! says what to write.

mod actions;
mod columns;
mod resource;
mod stages;
mod util;

use proc_macro::TokenStream;

/// Makes a struct's fields columns: a base of resources.
#[proc_macro_derive(Columns, attributes(columns, field, mixin))]
pub fn derive_columns(item: TokenStream) -> TokenStream {
    util::finish(columns::derive(item.into()))
}

/// Makes a struct a resource type and registers it.
///
/// ```ignore
/// /// A development space.
/// #[derive(Debug, Clone, Resource)]
/// #[resource(keyword = "space", plural = "spaces")]
/// pub struct Space {
///     pub base: VirtualBase,
///     /// The template it was made from.
///     #[field(list = "user", create = "required", references = "template")]
///     pub template_id: String,
/// }
/// ```
#[proc_macro_derive(Resource, attributes(resource, field, mixin))]
pub fn derive_resource(item: TokenStream) -> TokenStream {
    util::finish(resource::derive(item.into()))
}

/// Registers the `perform_*`, `get_property_*` and `get_details_*` methods of
/// an impl block as actions, properties and details of the resource.
#[proc_macro_attribute]
pub fn actions(_: TokenStream, item: TokenStream) -> TokenStream {
    util::finish(actions::expand(item.into()))
}

/// Makes an impl block of `on_*` stages a task: `#[stages(object = Space,
/// params = StartParams)]`, where `params` may be left out. Every stage has a
/// twin `<stage>_failed`; `#[stage(timeout_s = 60, attempts = 3)]` bounds one.
/// Stages are named `Self::ON_STARTED`; other methods are left alone.
#[proc_macro_attribute]
pub fn stages(args: TokenStream, item: TokenStream) -> TokenStream {
    util::finish(stages::expand(args.into(), item.into()))
}
