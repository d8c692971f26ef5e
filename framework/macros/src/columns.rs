//! `#[derive(Columns)]`: metadata of the fields, reading and writing rows, the
//! typed inputs of create and update, and the masked view.

use proc_macro2::{Ident, TokenStream};
use quote::{format_ident, quote};
use syn::{Data, DeriveInput, Expr, ExprLit, Fields, Lit, LitStr, Token, Type, punctuated::Punctuated};

use crate::util::{access, docs};

/// One field that is a column (or an input only).
pub(crate) struct Column {
    pub(crate) name: Ident,
    ty: Type,
    doc: String,
    list: Option<TokenStream>,
    get: Option<TokenStream>,
    pub(crate) create: Option<(TokenStream, bool)>,
    update: Option<TokenStream>,
    default: Option<Expr>,
    unique: bool,
    index: bool,
    search: bool,
    multiline: bool,
    transient: bool,
    cascade: bool,
    pub(crate) references: Option<LitStr>,
    max: Option<Expr>,
    choices: Vec<LitStr>,
}

/// A struct of columns that stands beside the base.
pub(crate) struct Mixin {
    name: Ident,
    ty: Type,
}

/// The struct, taken apart.
pub(crate) struct Parsed {
    pub(crate) ident: Ident,
    pub(crate) vis: syn::Visibility,
    pub(crate) base: Option<Type>,
    pub(crate) mixins: Vec<Mixin>,
    pub(crate) columns: Vec<Column>,
}

pub(crate) fn parse(input: &DeriveInput) -> syn::Result<Parsed> {
    let Data::Struct(data) = &input.data else {
        return Err(syn::Error::new_spanned(&input.ident, "a resource is a struct with named fields"));
    };
    let Fields::Named(fields) = &data.fields else {
        return Err(syn::Error::new_spanned(&input.ident, "a resource is a struct with named fields"));
    };
    if let Some(generic) = input.generics.params.first() {
        return Err(syn::Error::new_spanned(generic, "a resource has no generic parameters"));
    }
    let mut parsed = Parsed {
        ident: input.ident.clone(),
        vis: input.vis.clone(),
        base: None,
        mixins: Vec::new(),
        columns: Vec::new(),
    };
    for field in &fields.named {
        let Some(name) = field.ident.clone() else { continue };
        if name == "base" {
            parsed.base = Some(field.ty.clone());
            continue;
        }
        let attr = field.attrs.iter().find(|a| a.path().is_ident("field"));
        if let Some(mark) = field.attrs.iter().find(|a| a.path().is_ident("mixin")) {
            mixin(&mut parsed, field, mark, attr)?;
            continue;
        }
        let Some(attr) = attr else {
            let text = format!(
                "say who may see and set `{name}`: #[field(list = \"user\")], or #[field()] for nobody; \
                 #[mixin] if it is a struct of columns"
            );
            return Err(syn::Error::new_spanned(&field.ident, text));
        };
        let mut column = Column {
            doc: docs(&field.attrs),
            name,
            ty: field.ty.clone(),
            list: None,
            get: None,
            create: None,
            update: None,
            default: None,
            unique: false,
            index: false,
            search: false,
            multiline: false,
            transient: false,
            cascade: false,
            references: None,
            max: None,
            choices: Vec::new(),
        };
        if column.doc.is_empty() {
            let text = format!("document `{}`: the comment is the API's documentation", column.name);
            return Err(syn::Error::new_spanned(&column.name, text));
        }
        if !attr.meta.require_list()?.tokens.is_empty() {
            attr.parse_nested_meta(|meta| attribute(&mut column, &meta))?;
        }
        if column.cascade && column.references.is_none() {
            let text = "`cascade` goes with `references`: the row goes with the one that it refers to";
            return Err(syn::Error::new_spanned(attr, text));
        }
        parsed.columns.push(column);
    }
    Ok(parsed)
}

/// `#[mixin] pub trash: Trash`: its columns become the resource's.
fn mixin(
    parsed: &mut Parsed,
    field: &syn::Field,
    mark: &syn::Attribute,
    other: Option<&syn::Attribute>,
) -> syn::Result<()> {
    if !matches!(mark.meta, syn::Meta::Path(_)) {
        return Err(syn::Error::new_spanned(mark, "write only #[mixin]; what it adds its own fields say"));
    }
    if let Some(other) = other {
        let text = "a mixin has no #[field]: what it adds its own fields say";
        return Err(syn::Error::new_spanned(other, text));
    }
    if parsed.mixins.iter().any(|it| it.ty == field.ty) {
        return Err(syn::Error::new_spanned(&field.ty, "this mixin stands there twice"));
    }
    let name = field.ident.clone().ok_or_else(|| syn::Error::new_spanned(field, "name it"))?;
    parsed.mixins.push(Mixin { name, ty: field.ty.clone() });
    Ok(())
}

fn attribute(column: &mut Column, meta: &syn::meta::ParseNestedMeta<'_>) -> syn::Result<()> {
    let Some(key) = meta.path.get_ident().map(ToString::to_string) else {
        return Err(meta.error("a single word"));
    };
    match key.as_str() {
        "list" => column.list = Some(access(&meta.value()?.parse()?)?),
        "get" => column.get = Some(access(&meta.value()?.parse()?)?),
        "update" => column.update = Some(access(&meta.value()?.parse()?)?),
        "create" => column.create = Some(create(&meta.value()?.parse()?)?),
        "default" => column.default = Some(meta.value()?.parse()?),
        "references" => column.references = Some(meta.value()?.parse()?),
        "max" => column.max = Some(meta.value()?.parse()?),
        "unique" => column.unique = true,
        "index" => column.index = true,
        "search" => column.search = true,
        "multiline" => column.multiline = true,
        "transient" => column.transient = true,
        "cascade" => column.cascade = true,
        "choices" => {
            let content;
            syn::parenthesized!(content in meta.input);
            let list = Punctuated::<LitStr, Token![,]>::parse_terminated(&content)?;
            column.choices = list.into_iter().collect();
        }
        other => {
            return Err(meta.error(format!(
                "`{other}` is no property of a field; there are list, get, create, update, default, references, \
                 cascade, max, unique, index, search, multiline, transient, choices"
            )));
        }
    }
    Ok(())
}

/// `"required"` → by users, required; `"admin"` → by administrators, optional.
fn create(text: &LitStr) -> syn::Result<(TokenStream, bool)> {
    let value = text.value();
    let (rank, required) = match value.as_str() {
        "required" => ("user", true),
        "optional" => ("user", false),
        other => match other.strip_suffix("_required") {
            Some(rank) => (rank, true),
            None => (other, false),
        },
    };
    let rank = access(&LitStr::new(rank, text.span())).map_err(|_| {
        let hint = "write \"required\", \"optional\", \"admin\", \"admin_required\", \"domain\" or \"domain_required\"";
        syn::Error::new(text.span(), hint)
    })?;
    Ok((rank, required))
}

impl Column {
    fn default_value(&self) -> TokenStream {
        let ty = &self.ty;
        match &self.default {
            Some(Expr::Lit(ExprLit { lit: Lit::Str(text), .. })) => {
                quote!(::core::convert::From::from(#text))
            }
            Some(expr) => quote!(#expr),
            None => quote!(<#ty as ::core::default::Default>::default()),
        }
    }

    fn metadata(&self) -> TokenStream {
        let (name, ty, doc) = (self.name.to_string(), &self.ty, &self.doc);
        let never = quote!(::podyard::auth::Access::Never);
        let list = self.list.clone().unwrap_or_else(|| never.clone());
        let get = self.get.clone().unwrap_or_else(|| list.clone());
        let (create, required) = self.create.clone().unwrap_or((never.clone(), false));
        let update = self.update.clone().unwrap_or(never);
        let default = match &self.default {
            Some(expr) => {
                let text = quote!(#expr).to_string();
                quote!(::core::option::Option::Some(#text))
            }
            None => quote!(::core::option::Option::None),
        };
        let references = match &self.references {
            Some(text) => quote!(::core::option::Option::Some(#text)),
            None => quote!(::core::option::Option::None),
        };
        let max = self.max.clone().map_or(quote!(255), |max| quote!(#max));
        let (unique, search, multiline) = (self.unique, self.search, self.multiline);
        let index = self.index || self.unique;
        let (stored, cascade, choices) = (!self.transient, self.cascade, &self.choices);
        quote! {
            ::podyard::model::Field {
                name: #name,
                doc: #doc,
                column: <#ty as ::podyard::db::Column>::TYPE,
                nullable: <#ty as ::podyard::db::Column>::NULLABLE,
                stored: #stored,
                list: #list,
                get: #get,
                create: ::podyard::model::Create { access: #create, required: #required },
                update: #update,
                default: #default,
                unique: #unique,
                references: #references,
                cascade: #cascade,
                index: #index,
                search: #search,
                max: #max,
                multiline: #multiline,
                choices: &[#(#choices),*],
                range: ::podyard::model::Range::ANY,
                schema: |g| g.subschema_for::<#ty>(),
            }
        }
    }
}

/// The impl of `Columns`, the two inputs, and the way to the base's fields.
pub(crate) fn expand(parsed: &Parsed, stamped: bool) -> TokenStream {
    let Parsed { ident, vis, base, mixins, columns } = parsed;
    let mixin_names: Vec<_> = mixins.iter().map(|it| &it.name).collect();
    let mixin_types: Vec<_> = mixins.iter().map(|it| &it.ty).collect();
    let create_ident = format_ident!("{ident}Create");
    let update_ident = format_ident!("{ident}Update");
    let n = columns.len();
    let metadata = columns.iter().map(Column::metadata);
    let names: Vec<_> = columns.iter().map(|c| &c.name).collect();
    let stored: Vec<_> = columns.iter().filter(|c| !c.transient).collect();
    let stored_names: Vec<_> = stored.iter().map(|c| &c.name).collect();

    let (base_fields, base_read, base_write, base_view, base_stamp) = match base {
        Some(ty) => (
            quote!(<#ty as ::podyard::model::Columns>::fields(out);),
            quote!(base: <#ty as ::podyard::model::Columns>::read(row)?,),
            quote!(::podyard::model::Columns::write(&self.base, out);),
            quote!(::podyard::model::Columns::view(&self.base, out);),
            quote!(::podyard::model::Columns::stamp(&mut self.base, by);),
        ),
        None => Default::default(),
    };
    let stamp_own = if stamped { quote!(self.stamped(by);) } else { quote!() };
    let reads = columns.iter().map(|c| {
        let (name, default) = (&c.name, c.default_value());
        if c.transient { quote!(#name: #default,) } else { quote!(#name: row.get()?,) }
    });
    let own_name = format_ident!("__{}_FIELDS", ident.to_string().to_uppercase());

    // Inputs.
    let creatable: Vec<_> = columns.iter().enumerate().filter(|(_, c)| c.create.is_some()).collect();
    let updatable: Vec<_> = columns.iter().enumerate().filter(|(_, c)| c.update.is_some()).collect();
    let create_fields = creatable.iter().map(|(_, c)| {
        let (name, ty, doc) = (&c.name, &c.ty, &c.doc);
        quote!(#[doc = #doc] pub #name: #ty,)
    });
    let create_defaults = creatable.iter().map(|(_, c)| {
        let (name, default) = (&c.name, c.default_value());
        quote!(#name: #default,)
    });
    let create_sets = creatable.iter().map(|(i, c)| {
        let (name, text) = (&c.name, c.name.to_string());
        quote!(#text => self.#name = ::podyard::model::parse_field(&#own_name[#i], value)?,)
    });
    let update_fields = updatable.iter().map(|(_, c)| {
        let (name, ty, doc) = (&c.name, &c.ty, &c.doc);
        quote!(#[doc = #doc] pub #name: ::core::option::Option<#ty>,)
    });
    let update_sets = updatable.iter().map(|(i, c)| {
        let (name, text) = (&c.name, c.name.to_string());
        quote! {
            #text => self.#name = ::core::option::Option::Some(::podyard::model::parse_field(&#own_name[#i], value)?),
        }
    });
    let from_create = columns.iter().map(|c| {
        let (name, default) = (&c.name, c.default_value());
        match c.create {
            Some(_) => quote!(#name: ::core::clone::Clone::clone(&input.#name),),
            None => quote!(#name: #default,),
        }
    });
    let applies = updatable.iter().map(|(_, c)| {
        let name = &c.name;
        quote!(if let ::core::option::Option::Some(it) = &input.#name { ::core::clone::Clone::clone_from(&mut self.#name, it); })
    });
    let (create_base, create_base_default, update_base, set_base, from_base, apply_base) = match base {
        Some(ty) => (
            quote!(#[doc = "What the base takes."] pub base: <#ty as ::podyard::model::Columns>::Create,),
            quote!(base: ::core::default::Default::default(),),
            quote!(#[doc = "What the base takes."] pub base: <#ty as ::podyard::model::Columns>::Update,),
            quote!(::podyard::model::Input::set(&mut self.base, field, value)),
            quote!(base: <#ty as ::podyard::model::Columns>::from_create(&input.base),),
            quote!(::podyard::model::Columns::apply(&mut self.base, &input.base);),
        ),
        None => (quote!(), quote!(), quote!(), quote!(::core::result::Result::Ok(false)), quote!(), quote!()),
    };
    let set_rest = quote! {
        _ => {
            #(if ::podyard::model::Input::set(&mut self.#mixin_names, field, value)? {
                return ::core::result::Result::Ok(true);
            })*
            return #set_base;
        }
    };
    let none = quote!(::core::option::Option::None);
    let (base_mixin, base_mixin_mut) = match base {
        Some(_) => (
            quote!(::podyard::model::Columns::mixin(&self.base, of)),
            quote!(::podyard::model::Columns::mixin_mut(&mut self.base, of)),
        ),
        None => (none.clone(), none),
    };
    let derefs = base.as_ref().map(|ty| {
        let deref = |of: &Ident, target: TokenStream| {
            quote! {
                impl ::core::ops::Deref for #of {
                    type Target = #target;
                    fn deref(&self) -> &Self::Target { &self.base }
                }
                impl ::core::ops::DerefMut for #of {
                    fn deref_mut(&mut self) -> &mut Self::Target { &mut self.base }
                }
            }
        };
        let of_row = deref(ident, quote!(#ty));
        let of_create = deref(&create_ident, quote!(<#ty as ::podyard::model::Columns>::Create));
        let of_update = deref(&update_ident, quote!(<#ty as ::podyard::model::Columns>::Update));
        quote!(#of_row #of_create #of_update)
    });
    let create_doc = format!("What a client may send to create a [`{ident}`].");
    let update_doc =
        format!("What a client may send to change a [`{ident}`]; `None` leaves a field as it is.");

    quote! {
        static #own_name: [::podyard::model::Field; #n] = [#(#metadata),*];

        #[doc = #create_doc]
        #[derive(Debug, Clone)]
        #vis struct #create_ident {
            #create_base
            #(#[doc = "What the mixin takes."] pub #mixin_names: <#mixin_types as ::podyard::model::Columns>::Create,)*
            #(#create_fields)*
        }

        impl ::core::default::Default for #create_ident {
            fn default() -> Self {
                Self {
                    #create_base_default
                    #(#mixin_names: ::core::default::Default::default(),)*
                    #(#create_defaults)*
                }
            }
        }

        impl ::podyard::model::Input for #create_ident {
            fn set(
                &mut self, field: &str, value: &::podyard::RawValue,
            ) -> ::core::result::Result<bool, ::std::string::String> {
                match field { #(#create_sets)* #set_rest }
                #[allow(unreachable_code)]
                ::core::result::Result::Ok(true)
            }
        }

        #[doc = #update_doc]
        #[derive(Debug, Clone, Default)]
        #vis struct #update_ident {
            #update_base
            #(#[doc = "What the mixin takes."] pub #mixin_names: <#mixin_types as ::podyard::model::Columns>::Update,)*
            #(#update_fields)*
        }

        impl ::podyard::model::Input for #update_ident {
            fn set(
                &mut self, field: &str, value: &::podyard::RawValue,
            ) -> ::core::result::Result<bool, ::std::string::String> {
                match field { #(#update_sets)* #set_rest }
                #[allow(unreachable_code)]
                ::core::result::Result::Ok(true)
            }
        }

        #derefs

        #[allow(unused_variables)]
        impl ::podyard::model::Columns for #ident {
            type Create = #create_ident;
            type Update = #update_ident;

            fn fields(out: &mut ::std::vec::Vec<&'static ::podyard::model::Field>) {
                #base_fields
                #(<#mixin_types as ::podyard::model::Columns>::fields(out);)*
                out.extend(#own_name.iter());
            }

            fn read(row: &mut ::podyard::db::RowReader<'_, '_, '_>) -> ::podyard::Result<Self> {
                ::core::result::Result::Ok(Self {
                    #base_read
                    #(#mixin_names: <#mixin_types as ::podyard::model::Columns>::read(row)?,)*
                    #(#reads)*
                })
            }

            fn write<'a>(&'a self, out: &mut ::std::vec::Vec<::podyard::db::Value<'a>>) {
                #base_write
                #(::podyard::model::Columns::write(&self.#mixin_names, out);)*
                #(out.push(::podyard::db::Column::value(&self.#stored_names));)*
            }

            fn view(&self, out: &mut ::podyard::model::JsonObject<'_>) {
                #base_view
                #(::podyard::model::Columns::view(&self.#mixin_names, out);)*
                #(out.field(::core::stringify!(#names), &self.#names);)*
            }

            fn from_create(input: &Self::Create) -> Self {
                Self {
                    #from_base
                    #(#mixin_names: <#mixin_types as ::podyard::model::Columns>::from_create(&input.#mixin_names),)*
                    #(#from_create)*
                }
            }

            fn apply(&mut self, input: &Self::Update) {
                #apply_base
                #(::podyard::model::Columns::apply(&mut self.#mixin_names, &input.#mixin_names);)*
                #(#applies)*
            }

            fn stamp(&mut self, by: &::podyard::model::Stamp<'_>) {
                #base_stamp
                #(::podyard::model::Columns::stamp(&mut self.#mixin_names, by);)*
                #stamp_own
            }

            fn mixin(&self, of: ::core::any::TypeId) -> ::core::option::Option<&dyn ::core::any::Any> {
                #(if of == ::core::any::TypeId::of::<#mixin_types>() {
                    return ::core::option::Option::Some(&self.#mixin_names);
                })*
                #base_mixin
            }

            fn mixin_mut(
                &mut self, of: ::core::any::TypeId,
            ) -> ::core::option::Option<&mut dyn ::core::any::Any> {
                #(if of == ::core::any::TypeId::of::<#mixin_types>() {
                    return ::core::option::Option::Some(&mut self.#mixin_names);
                })*
                #base_mixin_mut
            }
        }
    }
}

pub(crate) fn derive(item: TokenStream) -> syn::Result<TokenStream> {
    let input: DeriveInput = syn::parse2(item)?;
    let parsed = parse(&input)?;
    let mut stamped = false;
    for attr in input.attrs.iter().filter(|a| a.path().is_ident("columns")) {
        attr.parse_nested_meta(|meta| {
            if meta.path.is_ident("stamp") {
                stamped = true;
                return Ok(());
            }
            Err(meta.error("only `stamp`: the struct then has a method `stamped(&mut self, by: &Stamp)`"))
        })?;
    }
    Ok(expand(&parsed, stamped))
}
