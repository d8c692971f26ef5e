//! What all the macros share: doc comments, ranks and errors.

use proc_macro2::TokenStream;
use quote::quote;
use syn::{Attribute, Expr, ExprLit, Lit, LitStr, Meta};

/// The tokens, or the errors as tokens.
pub(crate) fn finish(result: syn::Result<TokenStream>) -> proc_macro::TokenStream {
    result.unwrap_or_else(|error| error.to_compile_error()).into()
}

/// The doc comment, its lines joined.
pub(crate) fn docs(attrs: &[Attribute]) -> String {
    let mut lines = Vec::new();
    for attr in attrs.iter().filter(|a| a.path().is_ident("doc")) {
        if let Meta::NameValue(pair) = &attr.meta
            && let Expr::Lit(ExprLit { lit: Lit::Str(text), .. }) = &pair.value
        {
            lines.push(text.value().trim().to_owned());
        }
    }
    lines.join("\n").trim().to_owned()
}

/// `"user"` → `Access::User`.
pub(crate) fn access(text: &LitStr) -> syn::Result<TokenStream> {
    Ok(match text.value().as_str() {
        "never" => quote!(::podyard::auth::Access::Never),
        "user" => quote!(::podyard::auth::Access::User),
        "domain" => quote!(::podyard::auth::Access::Domain),
        "admin" => quote!(::podyard::auth::Access::Admin),
        other => {
            let text_ = format!("{other:?} is no rank; write \"user\", \"domain\", \"admin\" or \"never\"");
            return Err(syn::Error::new(text.span(), text_));
        }
    })
}
