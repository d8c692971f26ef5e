//! `#[actions]`: reads the shape of each method and registers it.

use proc_macro2::TokenStream;
use quote::quote;
use syn::{
    Attribute, FnArg, ImplItem, ImplItemFn, ItemImpl, LitStr, ReturnType, Token, Type, punctuated::Punctuated,
};

use crate::util::{access, docs};

#[derive(PartialEq, Clone, Copy)]
enum Receiver {
    Class,
    Item,
}

struct Method<'a> {
    item: &'a ImplItemFn,
    name: String,
    kind: TokenStream,
    get: bool,
    receiver: Receiver,
}

fn classify(item: &ImplItemFn) -> syn::Result<Option<Method<'_>>> {
    let name = item.sig.ident.to_string();
    let receiver = if item.sig.receiver().is_some() { Receiver::Item } else { Receiver::Class };
    let kebab = |text: &str| text.replace('_', "-");
    let (short, kind, get, wanted) = if let Some(rest) = name.strip_prefix("perform_class_") {
        (rest, quote!(Class), false, Receiver::Class)
    } else if let Some(rest) = name.strip_prefix("perform_") {
        match receiver {
            Receiver::Item => (rest, quote!(Item), false, Receiver::Item),
            Receiver::Class => (rest, quote!(Class), false, Receiver::Class),
        }
    } else if let Some(rest) = name.strip_prefix("get_property_") {
        (rest, quote!(Property), true, Receiver::Class)
    } else if let Some(rest) = name.strip_prefix("get_details_") {
        (rest, quote!(Detail), true, Receiver::Item)
    } else {
        return Ok(None);
    };
    if receiver != wanted {
        let text = match wanted {
            Receiver::Item => format!("`{name}` works on one row: begin with `&self`"),
            Receiver::Class => format!("`{name}` works on the class: it has no `self`"),
        };
        return Err(syn::Error::new_spanned(&item.sig.ident, text));
    }
    Ok(Some(Method { name: kebab(short), item, kind, get, receiver }))
}

/// The type inside `Result<…>`.
fn answer(item: &ImplItemFn) -> syn::Result<Type> {
    let wrong = || {
        let text = "answer `Result<()>` or `Result<Self>` for the resource itself, or `Result<T>` with a T that is Serialize and JsonSchema";
        syn::Error::new_spanned(&item.sig, text)
    };
    let ReturnType::Type(_, ty) = &item.sig.output else { return Err(wrong()) };
    let Type::Path(path) = &**ty else { return Err(wrong()) };
    let Some(last) = path.path.segments.last().filter(|s| s.ident == "Result") else { return Err(wrong()) };
    let syn::PathArguments::AngleBracketed(args) = &last.arguments else { return Err(wrong()) };
    match args.args.first() {
        Some(syn::GenericArgument::Type(ty)) => Ok(ty.clone()),
        _ => Err(wrong()),
    }
}

/// What `#[action(…)]` says.
struct Said {
    access: TokenStream,
    when: Vec<LitStr>,
    deprecated: TokenStream,
}

/// A day, as it is told to clients.
fn day(text: &LitStr) -> syn::Result<()> {
    let value = text.value();
    let parts: Vec<_> = value.split('-').map(|it| (it.len(), it.parse::<u32>().ok())).collect();
    match parts.as_slice() {
        [(4, Some(_)), (2, Some(1..=12)), (2, Some(1..=31))] => Ok(()),
        _ => Err(syn::Error::new_spanned(text, "write a day: \"2026-12-31\"")),
    }
}

fn action_attribute(attrs: &mut Vec<Attribute>) -> syn::Result<Said> {
    let (mut rank, mut when) = (quote!(::core::option::Option::None), Vec::new());
    let (mut since, mut sunset, mut successor): (Option<LitStr>, Option<LitStr>, Option<LitStr>) =
        (None, None, None);
    for attr in attrs.iter().filter(|a| a.path().is_ident("action")) {
        attr.parse_nested_meta(|meta| {
            if meta.path.is_ident("access") {
                let access = access(&meta.value()?.parse()?)?;
                rank = quote!(::core::option::Option::Some(#access));
            } else if meta.path.is_ident("when") {
                let content;
                syn::parenthesized!(content in meta.input);
                when = Punctuated::<LitStr, Token![,]>::parse_terminated(&content)?.into_iter().collect();
            } else if meta.path.is_ident("deprecated") || meta.path.is_ident("sunset") {
                let text: LitStr = meta.value()?.parse()?;
                day(&text)?;
                *(if meta.path.is_ident("sunset") { &mut sunset } else { &mut since }) = Some(text);
            } else if meta.path.is_ident("successor") {
                successor = Some(meta.value()?.parse()?);
            } else {
                return Err(meta.error(
                    "write #[action(access = \"admin\")] or #[action(when(\"ready\", \"stopped\"))] \
                     or #[action(deprecated = \"2026-12-31\", sunset = \"2027-12-31\", successor = \"start\")]",
                ));
            }
            Ok(())
        })?;
    }
    if let (None, Some(text)) = (&since, sunset.as_ref().or(successor.as_ref())) {
        return Err(syn::Error::new_spanned(text, "say since when, too: deprecated = \"2026-12-31\""));
    }
    attrs.retain(|a| !a.path().is_ident("action"));
    let option = |text: Option<LitStr>| match text {
        Some(text) => quote!(::core::option::Option::Some(#text)),
        None => quote!(::core::option::Option::None),
    };
    let (sunset, successor) = (option(sunset), option(successor));
    let deprecated = match since {
        Some(since) => quote!(::core::option::Option::Some(::podyard::http::Deprecated {
            since: #since, sunset: #sunset, successor: #successor,
        })),
        None => quote!(::core::option::Option::None),
    };
    Ok(Said { access: rank, when, deprecated })
}

fn register(self_ty: &Type, method: &Method<'_>, said: &Said) -> syn::Result<TokenStream> {
    let Said { access, when, deprecated } = said;
    let sig = &method.item.sig;
    let (ident, is_async) = (&sig.ident, sig.asyncness.is_some());
    let args: Vec<_> = sig
        .inputs
        .iter()
        .filter_map(|arg| match arg {
            FnArg::Typed(it) => Some(&*it.ty),
            FnArg::Receiver(_) => None,
        })
        .collect();
    let scope = if is_async { "ctx: &Ctx" } else { "tx: &mut Tx<'_>" };
    let right_scope = |ty: &Type| {
        let Type::Reference(reference) = ty else { return false };
        let Type::Path(path) = &*reference.elem else { return false };
        let wanted = if is_async { "Ctx" } else { "Tx" };
        path.path.segments.last().is_some_and(|s| s.ident == wanted)
            && (reference.mutability.is_some() != is_async)
    };
    let input = match args.as_slice() {
        [first] if right_scope(first) => None,
        [first, input] if right_scope(first) => Some((*input).clone()),
        _ => {
            let text = format!("`{ident}` takes `{scope}` and, if it has any, one input");
            return Err(syn::Error::new_spanned(sig, text));
        }
    };
    if is_async && matches!(sig.inputs.first(), Some(FnArg::Receiver(r)) if r.mutability.is_some()) {
        let text =
            format!("`{ident}` runs outside of any transaction and cannot change the row: write `&self`");
        return Err(syn::Error::new_spanned(sig, text));
    }
    let ty = answer(method.item)?;
    let is_row = matches!(&ty, Type::Tuple(t) if t.elems.is_empty());
    let is_self = matches!(&ty, Type::Path(p) if p.path.is_ident("Self")) || ty == *self_ty;
    let wrap = if is_row {
        if method.receiver == Receiver::Class {
            quote!({
                let () = answer;
                ::core::result::Result::Ok(::podyard::model::ActionOutput::Json(b"{}".to_vec()))
            })
        } else {
            quote!({
                let () = answer;
                ::core::result::Result::Ok(::podyard::model::ActionOutput::Row)
            })
        }
    } else if is_self {
        quote!(::core::result::Result::Ok(::podyard::model::ActionOutput::Record(::std::boxed::Box::new(
            answer
        ))))
    } else {
        quote!(::podyard::model::ActionOutput::json(&answer))
    };
    let reader = if method.get { quote!(read_query) } else { quote!(read_input) };
    let read = match &input {
        Some(ty) => quote!(let input: #ty = ::podyard::model::#reader(input)?;),
        None => quote!(let _: ::podyard::Nothing = ::podyard::model::#reader(input)?;),
    };
    let pass = input.as_ref().map(|_| quote!(, input));
    let run = match (method.receiver, is_async) {
        (Receiver::Item, false) => quote! {
            ::podyard::model::Run::Item(|row, tx, input| {
                let row = row.downcast_mut::<#self_ty>().ok_or_else(|| ::podyard::Error::internal("another type's row"))?;
                #read
                let answer = row.#ident(tx #pass)?;
                #wrap
            })
        },
        (Receiver::Class, false) => quote! {
            ::podyard::model::Run::Class(|tx, input| {
                #read
                let answer = <#self_ty>::#ident(tx #pass)?;
                #wrap
            })
        },
        (Receiver::Item, true) => quote! {
            ::podyard::model::Run::ItemAsync(|row, ctx, input| ::std::boxed::Box::pin(async move {
                let row = row.downcast::<#self_ty>().map_err(|_| ::podyard::Error::internal("another type's row"))?;
                let input = &input;
                #read
                let answer = row.#ident(&ctx #pass).await?;
                #wrap
            }))
        },
        (Receiver::Class, true) => quote! {
            ::podyard::model::Run::ClassAsync(|ctx, input| ::std::boxed::Box::pin(async move {
                let input = &input;
                #read
                let answer = <#self_ty>::#ident(&ctx #pass).await?;
                #wrap
            }))
        },
    };
    let input_ty = input.map_or(quote!(::podyard::Nothing), |ty| quote!(#ty));
    let output = if is_row || is_self {
        quote!(::core::option::Option::None)
    } else {
        quote!(::core::option::Option::Some(|g| g.subschema_for::<#ty>()))
    };
    let (name, kind, doc) = (&method.name, &method.kind, docs(&method.item.attrs));
    if doc.is_empty() {
        let text = format!("document `{ident}`: the comment is the API's documentation");
        return Err(syn::Error::new_spanned(&sig.ident, text));
    }
    Ok(quote! {
        ::podyard::inventory::submit! {
            ::podyard::model::Action {
                of: ::std::any::TypeId::of::<#self_ty>,
                name: #name,
                kind: ::podyard::model::ActionKind::#kind,
                doc: #doc,
                access: #access,
                when: &[#(#when),*],
                deprecated: #deprecated,
                run: #run,
                input: |g| g.subschema_for::<#input_ty>(),
                output: #output,
            }
        }
    })
}

pub(crate) fn expand(item: TokenStream) -> syn::Result<TokenStream> {
    let mut block: ItemImpl = syn::parse2(item)?;
    if let Some((_, path, _)) = &block.trait_ {
        return Err(syn::Error::new_spanned(
            path,
            "#[actions] stands on the type's own `impl`, not on a trait's",
        ));
    }
    let mut registrations = Vec::new();
    let self_ty = block.self_ty.clone();
    for item in &mut block.items {
        let ImplItem::Fn(method) = item else { continue };
        let said = action_attribute(&mut method.attrs)?;
        if let Some(found) = classify(method)? {
            registrations.push(register(&self_ty, &found, &said)?);
        }
    }
    Ok(quote!(#block #(#registrations)*))
}
