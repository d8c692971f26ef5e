//! `#[derive(Resource)]`: the columns, the type's metadata and its place in
//! the registry.

use proc_macro2::TokenStream;
use quote::quote;
use syn::{DeriveInput, LitStr, Token, Type, punctuated::Punctuated};

use crate::columns::{self, Parsed};
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
    joint: Option<(LitStr, LitStr)>,
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
                        "domain" => quote!(::podyard::model::Scope::Domain),
                        _ => {
                            let hint = "write \"all\", \"domain\", \"project\" or \"user\"";
                            return Err(syn::Error::new(text.span(), hint));
                        }
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
                "joint" => {
                    let content;
                    syn::parenthesized!(content in meta.input);
                    let sides = Punctuated::<LitStr, Token![,]>::parse_terminated(&content)?;
                    let mut sides = sides.into_iter();
                    it.joint = match (sides.next(), sides.next(), sides.next()) {
                        (Some(one), Some(other), None) => Some((one, other)),
                        _ => return Err(meta.error("name its two sides: joint(\"group_id\", \"user_id\")")),
                    };
                }
                other => {
                    return Err(meta.error(format!(
                        "`{other}` is no property of a resource; there are keyword, plural, read, write, list, get, \
                         create, update, delete, scope, cached, quota, unlogged, extra, joint"
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

/// Both sides are fields of the type that a create must give and that refer
/// to other types. Gives the members that name them in answers.
fn joint(parsed: &Parsed, sides: &(LitStr, LitStr)) -> syn::Result<Vec<(String, String)>> {
    let based = |ty: &Type| matches!(ty, Type::Path(p) if p.path.segments.last().is_some_and(|s| s.ident == "AnonBase"));
    if let Some(base) = parsed.base.as_ref().filter(|ty| !based(ty)) {
        return Err(syn::Error::new_spanned(base, "a joint resource has no name of its own: write AnonBase"));
    }
    let mut names = Vec::new();
    for side in [&sides.0, &sides.1] {
        let found = parsed.columns.iter().find(|it| it.name == side.value());
        let good = found.filter(|it| it.create.as_ref().is_some_and(|(_, required)| *required));
        let Some(keyword) = good.and_then(|it| it.references.as_ref()) else {
            let text = format!(
                "{:?} must be a field of it with #[field(create = \"required\", references = \"…\", index)]",
                side.value()
            );
            return Err(syn::Error::new(side.span(), text));
        };
        let name = side.value().strip_suffix("_id").map_or_else(|| keyword.value(), str::to_owned);
        names.push((name, format!("Name of its {}.", keyword.value())));
    }
    if sides.0.value() == sides.1.value() {
        return Err(syn::Error::new(sides.1.span(), "the two sides are two fields"));
    }
    Ok(names)
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
        let hint = "give it a base: `pub base: VirtualBase`, UserBase, DomainBase, StatusBase, StandaloneBase or AnonBase";
        return Err(syn::Error::new_spanned(ident, hint));
    };
    // What nobody stated the base says: what has an owner is the owner's, all
    // else is for administrators.
    let of_base = |what: TokenStream| quote!(<#base as ::podyard::model::Defaults>::#what);
    let rank = |given: &Option<TokenStream>, what| given.clone().unwrap_or_else(|| of_base(what));
    let (list, get) = (rank(&it.list, quote!(READ)), rank(&it.get, quote!(READ)));
    let (create, update) = (rank(&it.create, quote!(WRITE)), rank(&it.update, quote!(WRITE)));
    let delete = rank(&it.delete, quote!(WRITE));
    let scope = it.scope.clone().unwrap_or_else(|| of_base(quote!(SCOPE)));
    let owner = of_base(quote!(OWNER));
    let sides = it.joint.as_ref().map(|sides| joint(&parsed, sides)).transpose()?.unwrap_or_default();
    let joint = match &it.joint {
        Some((one, other)) => quote!(::core::option::Option::Some((#one, #other))),
        None => quote!(::core::option::Option::None),
    };
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
    let sides = sides.iter().map(|(name, doc)| quote!((#name, #doc)));
    let extra = extra.chain(sides);
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
                        owner: #owner,
                        joint: #joint,
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
