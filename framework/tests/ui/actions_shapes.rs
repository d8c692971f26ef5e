//! Methods whose shape does not say where they belong.
use podyard::prelude::*;

/// A thing.
#[derive(Debug, Clone, Default, Resource)]
#[resource(keyword = "thing", plural = "things")]
struct Thing {
    base: StandaloneBase,
}

impl Manager for Thing {}

impl Model for Thing {}

struct A;
#[actions]
impl A {
    /// Takes no transaction.
    fn perform_start(&mut self) -> Result<()> {
        Ok(())
    }
}

struct B;
#[actions]
impl B {
    /// Works on the class.
    fn get_property_count(&self, tx: &mut Tx<'_>) -> Result<i64> {
        Ok(1)
    }
}

struct C;
#[actions]
impl C {
    /// Cannot fail.
    fn perform_start(&mut self, tx: &mut Tx<'_>) {}
}

struct D;
#[actions]
impl D {
    /// Changes a row outside of any transaction.
    async fn perform_start(&mut self, ctx: &Ctx) -> Result<()> {
        Ok(())
    }
}

struct E;
#[actions]
impl E {
    fn perform_start(&mut self, tx: &mut Tx<'_>) -> Result<()> {
        Ok(())
    }
}

fn main() {}
