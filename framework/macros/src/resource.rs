//! `#[derive(Resource)]`: the columns, the type's metadata and its place in
//! the registry.

use proc_macro2::TokenStream;
use quote::quote;
use syn::{DeriveInput, LitStr};

use crate::columns;
use crate::util::{access, docs};

#[derive(Default)]
struct Attributes {
    keyword: Option<LitStr>,
    plural: Option<LitStr>,
    list: Option<TokenStream>,
    get: Option<TokenStream>,
    create: Option<TokenStream>,
    update: Option<TokenStream>,
    delete: Option<TokenStream>,
    scope: Option<TokenStream>,
    cached: bool,
    quota: Option<Vec<LitStr>>,
    unlogged: bool,
    extra: Vec<(syn::Ident, LitStr)>,
}

fn attributes(input: &DeriveInput) -> syn::Result<Attributes> {
    let mut it = Attributes::default();
    for attr in input.attrs.iter().filter(|a| a.path().is_ident("resource")) {
        attr.parse_nested_meta(|meta| {
            let Some(key) = meta.path.get_ident().map(ToString::to_string) else {
                return Err(meta.error("a single word"));
            };
            match key.as_str() {
                "keyword" => it.keyword = Some(meta.value()?.parse()?),
                "plural" => it.plural = Some(meta.value()?.parse()?),
                "list" => it.list = Some(access(&meta.value()?.parse()?)?),
                "get" => it.get = Some(access(&meta.value()?.parse()?)?),
                "create" => it.create = Some(access(&meta.value()?.parse()?)?),
                "update" => it.update = Some(access(&meta.value()?.parse()?)?),
                "delete" => it.delete = Some(access(&meta.value()?.parse()?)?),
                "read" => {
                    let rank = access(&meta.value()?.parse()?)?;
                    it.list = Some(rank.clone());
                    it.get = Some(rank);
                }
                "write" => {
                    let rank = access(&meta.value()?.parse()?)?;
                    it.create = Some(rank.clone());
                    it.update = Some(rank.clone());
                    it.delete = Some(rank);
                }
                "scope" => {
                    let text: LitStr = meta.value()?.parse()?;
                    it.scope = Some(match text.value().as_str() {
                        "all" => quote!(::podyard::model::Scope::All),
                        "project" => quote!(::podyard::model::Scope::Project),
                        "user" => quote!(::podyard::model::Scope::User),
                        _ => return Err(syn::Error::new(text.span(), "write \"all\", \"project\" or \"user\"")),
                    });
                }
                "cached" => it.cached = true,
                "quota" => {
                    let mut names = Vec::new();
                    if meta.input.peek(syn::token::Paren) {
                        let content;
                        syn::parenthesized!(content in meta.input);
                        let list = content.parse_terminated(<LitStr as syn::parse::Parse>::parse, syn::Token![,])?;
                        names.extend(list);
                    }
                    it.quota = Some(names);
                }
                "unlogged" => it.unlogged = true,
                "extra" => {
                    let content;
                    syn::parenthesized!(content in meta.input);
                    while !content.is_empty() {
                        let name: syn::Ident = content.parse()?;
                        content.parse::<syn::Token![=]>()?;
                        it.extra.push((name, content.parse()?));
                        if !content.is_empty() {
                            content.parse::<syn::Token![,]>()?;
                        }
                    }
                }
                other => {
                    return Err(meta.error(format!(
                        "`{other}` is no property of a resource; there are keyword, plural, read, write, list, get, \
                         create, update, delete, scope, cached, quota, unlogged, extra"
                    )));
                }
            }
            Ok(())
        })?;
    }
    Ok(it)
}

fn word(text: &LitStr) -> syn::Result<()> {
    let value = text.value();
    let good = value.starts_with(|c: char| c.is_ascii_lowercase())
        && value.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "_-".contains(c));
    if good { Ok(()) } else { Err(syn::Error::new(text.span(), "use small letters, digits, `_` and `-`")) }
}

pub(crate) fn derive(item: TokenStream) -> syn::Result<TokenStream> {
    let input: DeriveInput = syn::parse2(item)?;
    let parsed = columns::parse(&input)?;
    let it = attributes(&input)?;
    let ident = &input.ident;
    let doc = docs(&input.attrs);
    if doc.is_empty() {
        return Err(syn::Error::new_spanned(
            ident,
            "document the resource: the comment is the API's documentation",
        ));
    }
    let (Some(keyword), Some(plural)) = (&it.keyword, &it.plural) else {
        let hint = "name it: #[resource(keyword = \"space\", plural = \"spaces\")]";
        return Err(syn::Error::new_spanned(ident, hint));
    };
    word(keyword)?;
    word(plural)?;
    let Some(base) = &parsed.base else {
        let hint = "give it a base: `pub base: VirtualBase`, StatusBase, StandaloneBase or AnonBase";
        return Err(syn::Error::new_spanned(ident, hint));
    };
    let owned = matches!(base, syn::Type::Path(p) if p.path.segments.last().is_some_and(|s| s.ident == "VirtualBase"));
    // What nobody stated is for administrators; what has an owner is the owner's.
    let fallback = access(&LitStr::new(if owned { "user" } else { "admin" }, ident.span()))?;
    let rank = |given: &Option<TokenStream>| given.clone().unwrap_or_else(|| fallback.clone());
    let (list, get) = (rank(&it.list), rank(&it.get));
    let (create, update, delete) = (rank(&it.create), rank(&it.update), rank(&it.delete));
    let scope = it.scope.unwrap_or_else(|| {
        if owned { quote!(::podyard::model::Scope::User) } else { quote!(::podyard::model::Scope::All) }
    });
    let cached = it.cached;
    let quota = match &it.quota {
        Some(names) => quote!(::core::option::Option::Some(&[#(#names),*])),
        None => quote!(::core::option::Option::None),
    };
    let unlogged = it.unlogged;
    let extra = it.extra.iter().map(|(name, doc)| {
        let name = name.to_string();
        quote!((#name, #doc))
    });
    let columns = columns::expand(&parsed, false);

    Ok(quote! {
        #columns

        impl ::podyard::model::Record for #ident {
            fn meta() -> &'static ::podyard::model::Meta {
                static META: ::std::sync::OnceLock<::podyard::model::Meta> = ::std::sync::OnceLock::new();
                META.get_or_init(|| {
                    ::podyard::model::Meta::new(::podyard::model::MetaSource {
                        keyword: #keyword,
                        plural: #plural,
                        doc: #doc,
                        verbs: ::podyard::model::Verbs {
                            list: #list, get: #get, create: #create, update: #update, delete: #delete,
                        },
                        scope: #scope,
                        cached: #cached,
                        quota: #quota,
                        unlogged: #unlogged,
                        extra: &[#(#extra),*],
                        fields: <#ident as ::podyard::model::Columns>::fields,
                    })
                })
            }

            fn uses(
                &self, tx: &mut ::podyard::Tx<'_>,
            ) -> ::podyard::Result<::std::vec::Vec<::podyard::quota::QuotaUse>> {
                ::podyard::model::Model::quota_use(self, tx)
            }

            fn base(&self) -> &dyn ::podyard::model::Base { &self.base }

            fn base_mut(&mut self) -> &mut dyn ::podyard::model::Base { &mut self.base }
        }

        ::podyard::inventory::submit! {
            ::podyard::registry::Entry { handler: &::podyard::dispatch::Handler::<#ident>::NEW }
        }
    })
}
