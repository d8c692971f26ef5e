//! Before a container starts: its image and what it needs.

use serde_json::Value;

use super::{Break, Life};
use crate::cluster::behaviour::ImageFault;
use crate::cluster::spec;
use crate::value::text;

impl Life {
    /// Waits until the container can be made. `init` is its place among the init containers.
    pub(super) async fn fetch(&mut self, container: &Value, init: Option<usize>) -> Result<(), Break> {
        let name = text(&container["name"]).to_owned();
        let image = text(&container["image"]).to_owned();
        let mut round = 0_u64;
        loop {
            match self.behaviour(container).image {
                Err(ImageFault::Invalid(why)) => {
                    let message = format!(
                        "Failed to apply default image tag \"{image}\": couldn't parse image name \"{image}\": {why}"
                    );
                    self.say(true, "InspectFailed", &message, Some(&name));
                    self.say(true, "Failed", "Error: InvalidImageName", Some(&name));
                    self.wait_for(&name, init, "InvalidImageName", &message);
                    self.pause(12_000).await?;
                }
                Err(ImageFault::Missing(full)) => {
                    self.pull_fails(&name, &image, &full, init, round).await?;
                }
                Ok(()) => match spec::missing(&self.server, &self.pod, container) {
                    None => return Ok(()),
                    Some(message) => {
                        self.say(
                            false,
                            "Pulled",
                            &format!("Container image \"{image}\" already present on machine and can be accessed by the pod"),
                            Some(&name),
                        );
                        self.say(true, "Failed", &format!("Error: {message}"), Some(&name));
                        self.wait_for(&name, init, "CreateContainerConfigError", &message);
                        self.pause(12_000).await?;
                    }
                },
            }
            round += 1;
        }
    }

    async fn pull_fails(
        &mut self,
        name: &str,
        image: &str,
        full: &str,
        init: Option<usize>,
        round: u64,
    ) -> Result<(), Break> {
        let why = format!(
            "rpc error: code = NotFound desc = failed to pull and unpack image \"{full}\": \
             failed to resolve reference \"{full}\": {full}: not found"
        );
        if round == 0 {
            self.pause(300).await?;
        }
        self.say(false, "Pulling", &format!("Pulling image \"{image}\""), Some(name));
        self.say(true, "Failed", &format!("Failed to pull image \"{image}\": {why}"), Some(name));
        self.say(true, "Failed", "Error: ErrImagePull", Some(name));
        self.wait_for(name, init, "ErrImagePull", &why);
        if round == 0 {
            self.say(false, "BackOff", &format!("Back-off pulling image \"{image}\""), Some(name));
            self.say(true, "Failed", "Error: ImagePullBackOff", Some(name));
        }
        self.pause(12_000).await?;
        if round > 0 {
            self.say(false, "BackOff", &format!("Back-off pulling image \"{image}\""), Some(name));
            self.say(true, "Failed", "Error: ImagePullBackOff", Some(name));
        }
        let message = format!("Back-off pulling image \"{image}\": ErrImagePull: {why}");
        self.wait_for(name, init, "ImagePullBackOff", &message);
        self.pause(12_000).await
    }

    /// Tells what a container waits for.
    fn wait_for(&mut self, name: &str, init: Option<usize>, reason: &str, message: &str) {
        self.ip();
        let slot = match init {
            Some(at) => self.model.init.get_mut(at),
            None => self.model.main.iter_mut().find(|it| it.name == name),
        };
        if let Some(slot) = slot {
            slot.waits(reason, message);
        }
        self.tell();
    }
}
