//! The rows of the first start: the originals' sizes, and templates that work
//! on this machine at once or tell what they lack.

use std::sync::Arc;

use podyard::prelude::*;
use podyard::{Core, Result};
use serde_json::json;

use crate::{ContainerField, KUBERNETES, Kind, PROCESS, Spaces, Spec, Template};

fn words(list: &[&str]) -> Vec<String> {
    list.iter().map(ToString::to_string).collect()
}

fn kind(id: &str, name: &str, description: &str) -> Kind {
    let mut it = Kind { base: StandaloneBase::default() };
    it.id = id.into();
    it.name = name.into();
    it.description = description.into();
    it
}

fn spec(id: &str, name: &str, size: [&str; 3], description: &str) -> Spec {
    let [cpu, memory, storage] = size.map(str::to_owned);
    let mut it = Spec { cpu, memory, storage, enabled: true, ..Spec::default() };
    it.id = id.into();
    it.name = name.into();
    it.description = description.into();
    it
}

fn template(id: &str, name: &str, kind: &str, icon: &str, description: &str) -> Template {
    let mut it = Template {
        kind_id: kind.into(),
        driver: "process".into(),
        icon: icon.into(),
        enabled: true,
        ..Template::default()
    };
    it.id = id.into();
    it.name = name.into();
    it.description = description.into();
    it
}

/// What this machine runs.
fn of_this_machine() -> [Template; 3] {
    let about = "Browse, edit, upload and download the files of the space. Part of Podyard itself.";
    let mut files = template("files", "Files", "builtin", "📁", about);
    files.command =
        words(&["{podyard}", "files", "--listen", "127.0.0.1:{port}", "--dir", "{dir}", "--base", "{base}"]);
    files.tags = words(&["files", "editor"]);
    let mut code = template("code-server", "code-server", "ide", "🖥️", "Visual Studio Code in the browser.");
    code.command = words(&[
        "code-server",
        "--bind-addr",
        "127.0.0.1:{port}",
        "--auth",
        "none",
        "--disable-telemetry",
        "--disable-update-check",
        "{dir}",
    ]);
    code.tags = words(&["ide", "vscode"]);
    let mut lab =
        template("jupyterlab", "JupyterLab", "notebook", "📓", "Notebooks, terminals and an editor.");
    // Jupyter writes absolute links, so it must know its prefix and keep it.
    lab.keep_prefix = true;
    lab.command = words(&[
        "jupyter-lab",
        "--no-browser",
        "--allow-root",
        "--ServerApp.ip=127.0.0.1",
        "--ServerApp.port={port}",
        "--ServerApp.port_retries=0",
        "--ServerApp.base_url={base}",
        "--ServerApp.root_dir={dir}",
        "--ServerApp.allow_remote_access=True",
        "--IdentityProvider.token=",
    ]);
    lab.tags = words(&["python", "notebook"]);
    [files, code, lab]
}

/// What a cluster runs. The built-in one needs Podyard's own image; its id is
/// the plain one where nothing else has that.
fn of_a_cluster(image: Option<&str>, alone: bool) -> Vec<Template> {
    let id = |name: &str| if alone { name.to_owned() } else { format!("{name}-kubernetes") };
    let name = |name: &str| if alone { name.to_owned() } else { format!("{name} on Kubernetes") };
    let container = |value| Some(ContainerField::from(value));
    let mut all = Vec::new();
    if let Some(image) = image {
        let about = "Browse, edit, upload and download the files of the space. Part of Podyard itself.";
        let mut files = template(&id("files"), &name("Files"), "builtin", "📁", about);
        files.command =
            words(&["podyard", "files", "--listen", "0.0.0.0:{port}", "--dir", "{dir}", "--base", "{base}"]);
        files.container = container(json!({"image": image}));
        files.tags = words(&["files", "editor"]);
        all.push(files);
    }
    let about = "Visual Studio Code in the browser.";
    let mut code = template(&id("code-server"), &name("code-server"), "ide", "🖥️", about);
    code.command = words(&[
        "code-server",
        "--bind-addr",
        "0.0.0.0:{port}",
        "--auth",
        "none",
        "--disable-telemetry",
        "--disable-update-check",
        "{dir}",
    ]);
    code.container =
        container(json!({"image": "docker.io/codercom/code-server:latest", "probe_path": "/healthz"}));
    code.tags = words(&["ide", "vscode"]);
    let about = "Notebooks, terminals and an editor.";
    let mut lab = template(&id("jupyterlab"), &name("JupyterLab"), "notebook", "📓", about);
    lab.keep_prefix = true;
    lab.command = words(&[
        "jupyter-lab",
        "--no-browser",
        "--ServerApp.ip=0.0.0.0",
        "--ServerApp.port={port}",
        "--ServerApp.port_retries=0",
        "--ServerApp.base_url={base}",
        "--ServerApp.root_dir={dir}",
        "--ServerApp.allow_remote_access=True",
        "--IdentityProvider.token=",
    ]);
    lab.container = container(json!({"image": "quay.io/jupyter/minimal-notebook:latest"}));
    lab.tags = words(&["python", "notebook"]);
    all.extend([code, lab]);
    for it in &mut all {
        KUBERNETES.clone_into(&mut it.driver);
    }
    all
}

/// Makes the rows, unless there are any kinds already: what an administrator
/// deleted stays deleted.
///
/// # Errors
/// What the database says.
pub async fn seed(core: &Arc<Core>) -> Result<()> {
    let ctx = Ctx::system(core);
    let there = ctx.read(podyard::db::Cost::Bounded, |tx| Kind::select().limit(1).rows(tx));
    if !there.await?.value.is_empty() {
        return Ok(());
    }
    let done = ctx.write(None, |tx| {
        tx.lock("spaces/seed")?;
        if Kind::select().one(tx)?.is_some() {
            return Ok(());
        }
        for it in [
            kind("builtin", "Built-in", "Nothing else needs to be installed."),
            kind("ide", "Editors", "Whole development environments."),
            kind("notebook", "Notebooks", "Code, text and pictures in one document."),
        ] {
            let row = tx.create(it)?;
            tx.log(&row, "create", None)?;
        }
        for it in [
            spec("test", "Test", ["2", "2Gi", "4Gi"], "To try things."),
            spec("standard", "Standard", ["2", "4Gi", "8Gi"], "For most work."),
            spec("enhanced", "Enhanced", ["4", "8Gi", "16Gi"], "For larger projects."),
            spec("professional", "Professional", ["8", "16Gi", "32Gi"], "For heavy builds."),
        ] {
            let row = tx.create(it)?;
            tx.log(&row, "create", None)?;
        }
        let spaces = tx.ctx.service::<Spaces>()?;
        let (here, cluster) = (spaces.driver(PROCESS).is_ok(), spaces.driver(KUBERNETES).is_ok());
        let mut templates = Vec::new();
        if here || !cluster {
            templates.extend(of_this_machine());
        }
        if cluster {
            templates.extend(of_a_cluster(spaces.options.image.as_deref(), !here));
        }
        for it in templates {
            let row = tx.create(it)?;
            tx.log(&row, "create", None)?;
        }
        Ok(())
    });
    done.await?;
    Ok(())
}
