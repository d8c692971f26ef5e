//! `#[stages]`: an impl block of `on_*` methods becomes a kind of task.

use std::collections::BTreeSet;

use proc_macro2::{Ident, TokenStream};
use quote::{format_ident, quote, quote_spanned};
use syn::parse::Parser;
use syn::{FnArg, ImplItem, ImplItemFn, ItemImpl, LitInt, PathArguments, ReturnType, Type, spanned::Spanned};

const TWIN: &str = "_failed";
const UNDO: &str = "_undo";

struct Args {
    object: Type,
    params: Option<Type>,
    priority: i64,
    concurrency: Option<u64>,
    per_second: Option<u64>,
    timeout_s: Option<u64>,
}

fn args(tokens: TokenStream) -> syn::Result<Args> {
    let (mut object, mut params) = (None, None);
    let (mut priority, mut concurrency, mut per_second, mut timeout_s) = (50_i64, None, None, None);
    let span = tokens.span();
    let parser = syn::meta::parser(|meta| {
        if meta.path.is_ident("object") {
            object = Some(meta.value()?.parse()?);
        } else if meta.path.is_ident("params") {
            params = Some(meta.value()?.parse()?);
        } else if meta.path.is_ident("priority") {
            let number: LitInt = meta.value()?.parse()?;
            priority = number.base10_parse()?;
            if !(0..100).contains(&priority) {
                return Err(syn::Error::new(number.span(), "from 0, which goes first, to 99"));
            }
        } else if meta.path.is_ident("concurrency") {
            concurrency = Some(positive(&meta.value()?.parse()?)?);
        } else if meta.path.is_ident("per_second") {
            per_second = Some(positive(&meta.value()?.parse()?)?);
        } else if meta.path.is_ident("timeout_s") {
            timeout_s = Some(positive(&meta.value()?.parse()?)?);
        } else {
            return Err(meta.error(
                "write #[stages(object = Space, params = StartParams)], and if need be `priority = 50`, \
                 `concurrency = 4`, `per_second = 10`, `timeout_s = 3600`",
            ));
        }
        Ok(())
    });
    parser.parse2(tokens)?;
    let Some(object) = object else {
        return Err(syn::Error::new(span, "say what the task works on: #[stages(object = Space)]"));
    };
    Ok(Args { object, params, priority, concurrency, per_second, timeout_s })
}

struct Bounds {
    timeout_s: u64,
    attempts: i64,
    backoff_ms: u64,
}

/// `#[stage(timeout_s = 60, attempts = 3)]`, taken off the method.
fn bounds(method: &mut ImplItemFn) -> syn::Result<Bounds> {
    let mut it = Bounds { timeout_s: 600, attempts: 5, backoff_ms: 0 };
    for attr in method.attrs.iter().filter(|a| a.path().is_ident("stage")) {
        attr.parse_nested_meta(|meta| {
            if meta.path.is_ident("timeout_s") {
                it.timeout_s = positive(&meta.value()?.parse()?)?;
            } else if meta.path.is_ident("attempts") {
                it.attempts = positive(&meta.value()?.parse()?)?;
            } else if meta.path.is_ident("backoff_ms") {
                it.backoff_ms = positive(&meta.value()?.parse()?)?;
            } else {
                return Err(meta.error("write #[stage(timeout_s = 60, attempts = 3, backoff_ms = 500)]"));
            }
            Ok(())
        })?;
    }
    method.attrs.retain(|a| !a.path().is_ident("stage"));
    Ok(it)
}

fn positive<N>(number: &LitInt) -> syn::Result<N>
where
    N: std::str::FromStr + PartialOrd + From<u8>,
    N::Err: std::fmt::Display,
{
    let value: N = number.base10_parse()?;
    if value < N::from(1) {
        return Err(syn::Error::new(number.span(), "must be at least 1"));
    }
    Ok(value)
}

/// The last word of a path type.
fn last(ty: &Type) -> Option<&syn::PathSegment> {
    match ty {
        Type::Path(path) => path.path.segments.last(),
        _ => None,
    }
}

fn is_ctx(ty: &Type) -> bool {
    let Type::Reference(reference) = ty else { return false };
    reference.mutability.is_some() && last(&reference.elem).is_some_and(|s| s.ident == "TaskCtx")
}

/// Whether it answers `Stage` or `Result<Stage>`.
fn answers_stage(output: &ReturnType) -> bool {
    let ReturnType::Type(_, ty) = output else { return false };
    let Some(segment) = last(ty) else { return false };
    if segment.ident == "Stage" {
        return true;
    }
    let PathArguments::AngleBracketed(args) = &segment.arguments else { return false };
    let Some(syn::GenericArgument::Type(first)) = args.args.first() else { return false };
    segment.ident == "Result" && args.args.len() == 1 && last(first).is_some_and(|s| s.ident == "Stage")
}

/// The arm that calls the stage.
fn arm(method: &ImplItemFn) -> syn::Result<TokenStream> {
    let sig = &method.sig;
    let (ident, name) = (&sig.ident, sig.ident.to_string());
    let twin = name.ends_with(TWIN);
    let wanted = if twin {
        format!("write `async fn {name}(t: &mut TaskCtx<…>, why: Reason) -> Stage`")
    } else if name == "on_init" {
        "write `async fn on_init(t: &mut TaskCtx<…>) -> Stage`; what the task is started with is in `t.params()`"
            .to_owned()
    } else {
        format!(
            "write `async fn {name}(t: &mut TaskCtx<…>) -> Stage`, or with `data: T` as a second argument"
        )
    };
    let wrong = |at: &dyn quote::ToTokens| Err(syn::Error::new_spanned(at, wanted.clone()));
    if sig.asyncness.is_none() {
        return wrong(&sig.fn_token);
    }
    if let Some(generic) = sig.generics.params.first() {
        return wrong(generic);
    }
    let mut types = Vec::new();
    for input in &sig.inputs {
        match input {
            FnArg::Receiver(receiver) => return wrong(receiver),
            FnArg::Typed(it) => types.push(&*it.ty),
        }
    }
    let (first, second) = match types.as_slice() {
        [first] => (first, None),
        [first, second] => (first, Some(second)),
        _ => return wrong(&sig.ident),
    };
    if !is_ctx(first) {
        return wrong(first);
    }
    let is_reason = second.is_some_and(|ty| last(ty).is_some_and(|s| s.ident == "Reason"));
    match second {
        None if twin => return wrong(&sig.ident),
        Some(second) if twin != is_reason || name == "on_init" => return wrong(second),
        _ => {}
    }
    if !answers_stage(&sig.output) {
        return match &sig.output {
            ReturnType::Default => wrong(&sig.ident),
            ReturnType::Type(_, ty) => wrong(ty),
        };
    }
    let pass = match second {
        None => quote!(),
        Some(_) if twin => quote!(, input.why()),
        Some(_) => quote!(, input.data(#name)?),
    };
    // The method's place for errors of the call: other parameters, a future that is not Send.
    Ok(quote_spanned! {ident.span()=>
        #name => ::podyard::task::IntoStage::into_stage(Self::#ident(t #pass).await),
    })
}

/// `SpaceStart` → `space-start`.
fn kebab(ident: &Ident) -> String {
    let mut out = String::new();
    for (i, c) in ident.to_string().chars().enumerate() {
        if c.is_uppercase() && i > 0 {
            out.push('-');
        }
        out.extend(c.to_lowercase());
    }
    out
}

/// Every stage has its twin, every twin its stage.
fn check_pairs(block: &ItemImpl, stages: &[Ident]) -> syn::Result<()> {
    let names: BTreeSet<String> = stages.iter().map(ToString::to_string).collect();
    let mut errors: Option<syn::Error> = None;
    let mut add = |error: syn::Error| match &mut errors {
        Some(all) => all.combine(error),
        None => errors = Some(error),
    };
    if !names.contains("on_init") {
        let text = "a task begins with `on_init`: write `async fn on_init(t: &mut TaskCtx<…>) -> Stage`";
        add(syn::Error::new_spanned(&block.self_ty, text));
    }
    for ident in stages {
        let name = ident.to_string();
        match name.strip_suffix(TWIN) {
            Some(of) if of.ends_with(TWIN) => {
                add(syn::Error::new(
                    ident.span(),
                    format!("`{of}` is a twin and has no twin itself: remove `{name}`"),
                ));
            }
            Some(of) if !names.contains(of) => {
                let text = format!("there is no stage `{of}`: write it, or remove its twin `{name}`");
                add(syn::Error::new(ident.span(), text));
            }
            None if name.ends_with(UNDO) => {
                let of = name.trim_end_matches(UNDO);
                if !names.contains(of) {
                    let text = format!("there is no stage `{of}`: write it, or remove `{name}`");
                    add(syn::Error::new(ident.span(), text));
                }
            }
            None if !names.contains(&format!("{name}{TWIN}")) => {
                let text = format!(
                    "say what happens when `{name}` fails: \
                     write `async fn {name}{TWIN}(t: &mut TaskCtx<…>, why: Reason) -> Stage`"
                );
                add(syn::Error::new(ident.span(), text));
            }
            _ => {}
        }
    }
    errors.map_or(Ok(()), Err)
}

pub(crate) fn expand(tokens: TokenStream, item: TokenStream) -> syn::Result<TokenStream> {
    let Args { object, params, priority, concurrency, per_second, timeout_s } = args(tokens)?;
    let mut block: ItemImpl = syn::parse2(item)?;
    if let Some((_, path, _)) = &block.trait_ {
        return Err(syn::Error::new_spanned(
            path,
            "#[stages] stands on the task's own `impl`, not on a trait's",
        ));
    }
    let self_ty = block.self_ty.clone();
    let Some(segment) = last(&self_ty).filter(|s| s.arguments.is_none()) else {
        return Err(syn::Error::new_spanned(&self_ty, "a task is a unit struct: `pub struct SpaceStart;`"));
    };
    let task = kebab(&segment.ident);
    let (mut idents, mut arms, mut specs, mut consts) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for item in &mut block.items {
        let ImplItem::Fn(method) = item else { continue };
        let name = method.sig.ident.to_string();
        if !name.starts_with("on_") {
            continue;
        }
        let Bounds { timeout_s, attempts, backoff_ms } = bounds(method)?;
        arms.push(arm(method)?);
        specs.push(quote!(::podyard::task::StageSpec {
            name: #name, timeout_s: #timeout_s, attempts: #attempts, backoff_ms: #backoff_ms
        }));
        if !name.ends_with(TWIN) && !name.ends_with(UNDO) {
            let constant = format_ident!("{}", name.to_uppercase(), span = method.sig.ident.span());
            let doc = format!("The stage `{name}`.");
            consts.push(quote! {
                #[doc = #doc]
                #[allow(dead_code)]
                pub const #constant: ::podyard::task::StageName = ::podyard::task::StageName::new(#name);
            });
        }
        idents.push(method.sig.ident.clone());
    }
    check_pairs(&block, &idents)?;
    let option = |it: Option<u64>| {
        it.map_or_else(
            || quote!(::core::option::Option::None),
            |n| {
                let n = proc_macro2::Literal::u64_unsuffixed(n);
                quote!(::core::option::Option::Some(#n))
            },
        )
    };
    let (concurrency, per_second, timeout_s) = (option(concurrency), option(per_second), option(timeout_s));
    let params = params.map_or_else(|| quote!(::podyard::Nothing), |ty| quote!(#ty));
    Ok(quote! {
        #block

        impl #self_ty {
            #(#consts)*
        }

        impl ::podyard::task::TaskType for #self_ty {
            const NAME: &'static str = #task;
            const STAGES: &'static [::podyard::task::StageSpec] = &[#(#specs),*];
            const OPTIONS: ::podyard::task::TaskOptions = ::podyard::task::TaskOptions {
                priority: #priority,
                concurrency: #concurrency,
                per_second: #per_second,
                timeout_s: #timeout_s,
            };
            type Object = #object;
            type Params = #params;

            fn run<'a>(
                stage: &'a str,
                t: &'a mut ::podyard::task::TaskCtx<#object, #params>,
                input: ::podyard::task::StageInput,
            ) -> ::podyard::task::BoxFuture<'a, ::podyard::Result<::podyard::task::Stage>> {
                ::std::boxed::Box::pin(async move {
                    match stage {
                        #(#arms)*
                        other => ::core::result::Result::Err(
                            ::podyard::Error::internal(::std::format!("{} has no stage {other}", #task)),
                        ),
                    }
                })
            }
        }

        ::podyard::inventory::submit! { ::podyard::task::TaskEntry::of::<#self_ty>() }
    })
}
