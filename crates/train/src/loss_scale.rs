//! Loss scaling: gradients of an fp16 run are made larger by a factor, so that small ones do not vanish in f16, and smaller
//! again when the masters are updated.
//!
//! # Order of events, in each step
//! 1. The loss of every micro-batch is multiplied by the scale.
//! 2. If a gradient is not finite the update is skipped: no counter of the schedule or the optimizer moves.
//! 3. The scale that the next step uses is settled ([`LossScaler::update`]).
//!
//! Under a dynamic scale an overflow first uses up hysteresis, and halves the scale once one is left. After `window` clean
//! steps in a row, and every `window` after that, the scale doubles and hysteresis is full again; the first growth comes
//! with clean step `window + 1`.
//!
//! Source: DeepSpeed `runtime/fp16/loss_scaler.py`, `DynamicLossScaler`. Where we differ: DeepSpeed settles the scale before
//! it divides the gradients, so the step that doubles it divides by the doubled one; here gradients are divided by what they
//! were multiplied by. And the scale does not grow beyond [`MAX_SCALE`].
//!
//! `torch_autocast` in fp16 scales as PyTorch's `GradScaler` does: from 2^16, no hysteresis and no minimum but [`MIN_SCALE`],
//! and doubled by every 2000th clean step in a row.

use crate::config::{Fp16Config, RunConfig};
use serde::{Deserialize, Serialize};
use tensor::DType;

/// The largest scale, 2^126: it and its reciprocal are normal numbers of f32.
pub const MAX_SCALE: f64 = (1u128 << 126) as f64;

/// The smallest scale under `torch_autocast`, 2^-126.
pub const MIN_SCALE: f64 = 1.0 / MAX_SCALE;

/// `GradScaler` in the terms of the `fp16` section.
const GRAD_SCALER: Fp16Config = Fp16Config {
    enabled: true,
    loss_scale: 0.0,
    initial_scale_power: 16,
    loss_scale_window: 2000,
    hysteresis: 1,
    consecutive_hysteresis: false,
    min_loss_scale: MIN_SCALE,
    fp16_master_weights_and_grads: false,
};

/// What changes from step to step; a checkpoint holds it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LossScale {
    /// What the loss is multiplied by.
    pub scale: f64,
    /// Steps since the last overflow, or since the start.
    pub clean_steps: u64,
    /// Overflows until the scale falls, the one that lowers it included.
    pub hysteresis: u64,
}

/// What a step has done to the scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScaleChange {
    /// Nothing.
    None,
    /// It has doubled.
    Raised,
    /// It has fallen to half, or to the minimum.
    Lowered,
    /// There was an overflow, which hysteresis has taken.
    Tolerated,
    /// There was an overflow and the scale cannot fall: it is at its minimum.
    AtMinimum,
}

/// The scale of a run.
#[derive(Clone, Copy, Debug)]
pub struct LossScaler {
    config: Fp16Config,
    state: LossScale,
    /// The scale grows with the last clean step of a window; else with the one after it.
    grows_at_once: bool,
}

impl LossScaler {
    /// The scale of a run's first step. A `loss_scale` above 0 is the scale for good.
    pub fn new(config: Fp16Config) -> Self {
        let first = 2f64.powf(config.initial_scale_power as f64);
        let scale = if config.is_dynamic() { first } else { config.loss_scale };
        Self { config, state: LossScale { scale, clean_steps: 0, hysteresis: full(&config) }, grows_at_once: false }
    }

    /// That of a run: none unless something in it runs in fp16.
    pub(crate) fn of(config: &RunConfig) -> Option<Self> {
        let autocasts = config.torch_autocast.low() == Some(DType::F16);
        let scaler = autocasts.then(|| Self { grows_at_once: true, ..Self::new(GRAD_SCALER) });
        scaler.or_else(|| config.fp16.enabled.then(|| Self::new(config.fp16)))
    }

    /// What the loss of the next step is multiplied by.
    pub fn scale(&self) -> f64 {
        self.state.scale
    }

    /// Whether overflows are taken by a scale that falls.
    pub(crate) fn can_fall(&self) -> bool {
        self.config.is_dynamic() && (self.state.hysteresis > 1 || self.state.scale > self.config.min_loss_scale)
    }

    /// For a checkpoint.
    pub fn state(&self) -> LossScale {
        self.state
    }

    /// Goes on from a checkpoint. A static scale stays what the run file says.
    pub fn restore(&mut self, state: LossScale) {
        if self.config.is_dynamic() {
            self.state = state;
        }
    }

    /// Settles the scale of the next step.
    pub fn update(&mut self, overflow: bool) -> ScaleChange {
        match (self.config.is_dynamic(), overflow) {
            (false, false) => ScaleChange::None,
            (false, true) => ScaleChange::Tolerated,
            (true, false) => self.clean(),
            (true, true) => self.overflow(),
        }
    }

    fn clean(&mut self) -> ScaleChange {
        let Fp16Config { loss_scale_window: window, consecutive_hysteresis, .. } = self.config;
        let state = &mut self.state;
        let steps = state.clean_steps + u64::from(self.grows_at_once);
        let grows = steps > 0 && steps.is_multiple_of(window.unsigned_abs());
        state.clean_steps += 1;
        if consecutive_hysteresis || grows {
            state.hysteresis = full(&self.config);
        }
        if !grows {
            return ScaleChange::None;
        }
        state.scale = (state.scale * 2.0).min(MAX_SCALE);
        ScaleChange::Raised
    }

    fn overflow(&mut self) -> ScaleChange {
        let state = &mut self.state;
        state.clean_steps = 0;
        if state.hysteresis > 1 {
            state.hysteresis -= 1;
            return ScaleChange::Tolerated;
        }
        if state.scale == self.config.min_loss_scale {
            return ScaleChange::AtMinimum;
        }
        state.scale = (state.scale / 2.0).max(self.config.min_loss_scale);
        ScaleChange::Lowered
    }
}

/// Overflows that a dynamic scale bears at first; the configuration keeps them above 0.
fn full(config: &Fp16Config) -> u64 {
    config.hysteresis.unsigned_abs()
}

/// What is said when an update was skipped; in fp16 with the scale of this step and of the next one.
pub(crate) fn skip_notice(step: u64, scale: Option<f64>, next: Option<f64>) -> String {
    match (scale, next) {
        (Some(scale), Some(next)) if next < scale => format!(
            "step {step}: a gradient overflowed at loss scale {scale}; the update was skipped and the scale is now {next}"
        ),
        (Some(scale), _) => {
            format!("step {step}: a gradient overflowed at loss scale {scale}, which stays; the update was skipped")
        }
        _ => format!("step {step}: a gradient is not finite; the update was skipped"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    /// The defaults of the table.
    const FP16: Fp16Config = Fp16Config {
        enabled: true,
        loss_scale: 0.0,
        initial_scale_power: 16,
        loss_scale_window: 1000,
        hysteresis: 2,
        consecutive_hysteresis: false,
        min_loss_scale: 1.0,
        fp16_master_weights_and_grads: false,
    };

    #[test]
    fn the_scale_after_every_step_is_that_of_deepspeed() {
        let cases: Vec<Value> =
            serde_json::from_str(include_str!("../tests/fixtures/loss_scale.json")).expect("the fixture is JSON");
        assert_eq!(cases.len(), 4);
        for case in &cases {
            let number = |key: &str| case[key].as_u64().unwrap_or_else(|| panic!("{key} in {case}"));
            let mut scaler = LossScaler::new(Fp16Config {
                initial_scale_power: u64::from(number("initial_scale").ilog2()),
                loss_scale_window: number("loss_scale_window") as i64,
                hysteresis: number("hysteresis") as i64,
                consecutive_hysteresis: case["consecutive_hysteresis"] == true,
                min_loss_scale: number("min_loss_scale") as f64,
                ..FP16
            });
            let overflows = case["overflow"].as_array().expect("a list");
            let scales: Vec<f64> = (overflows.iter())
                .map(|overflow| {
                    // At the minimum the reference was told to go on.
                    scaler.update(*overflow == true);
                    scaler.scale()
                })
                .collect();
            let want: Vec<f64> = serde_json::from_value(case["scale_after"].clone()).expect("numbers");
            assert_eq!(scales, want, "{case}");
        }
    }

    #[test]
    fn the_first_growth_comes_with_the_clean_step_after_the_window() {
        let mut scaler = LossScaler::new(Fp16Config { loss_scale_window: 3, ..FP16 });
        let changes: Vec<ScaleChange> = (0..7).map(|_| scaler.update(false)).collect();
        let raised: Vec<usize> = (0..7).filter(|&step| changes[step] == ScaleChange::Raised).collect();
        assert_eq!((raised, scaler.scale()), (vec![3, 6], 262_144.0));
    }

    #[test]
    fn hysteresis_is_used_up_for_good_until_the_scale_grows_unless_it_is_consecutive() {
        use ScaleChange::{Lowered, None, Raised, Tolerated};
        let pattern = [true, false, true, true, false, false, false, true];
        let changes = |config| {
            let mut scaler = LossScaler::new(config);
            pattern.map(|overflow| scaler.update(overflow))
        };
        let config = Fp16Config { loss_scale_window: 2, ..FP16 };
        assert_eq!(changes(config), [Tolerated, None, Lowered, Lowered, None, None, Raised, Tolerated]);
        let config = Fp16Config { consecutive_hysteresis: true, ..config };
        assert_eq!(changes(config), [Tolerated, None, Tolerated, Lowered, None, None, Raised, Tolerated]);
    }

    #[test]
    fn the_scale_stops_at_its_minimum_and_says_so() {
        let mut scaler =
            LossScaler::new(Fp16Config { initial_scale_power: 3, hysteresis: 1, min_loss_scale: 3.0, ..FP16 });
        let changes = [true; 3].map(|overflow| (scaler.update(overflow), scaler.scale()));
        assert_eq!(changes, [(ScaleChange::Lowered, 4.0), (ScaleChange::Lowered, 3.0), (ScaleChange::AtMinimum, 3.0)]);
    }

    #[test]
    fn a_static_scale_never_changes_and_no_checkpoint_changes_it() {
        let mut scaler = LossScaler::new(Fp16Config { loss_scale: 128.0, loss_scale_window: 1, ..FP16 });
        scaler.restore(LossScale { scale: 4.0, clean_steps: 7, hysteresis: 1 });
        let changes = [true, false, false, true].map(|overflow| scaler.update(overflow));
        assert_eq!(changes, [ScaleChange::Tolerated, ScaleChange::None, ScaleChange::None, ScaleChange::Tolerated]);
        assert_eq!(scaler.scale(), 128.0);
    }

    #[test]
    fn the_scale_grows_no_further_than_f32_can_hold() {
        let mut scaler = LossScaler::new(Fp16Config { initial_scale_power: 126, loss_scale_window: 1, ..FP16 });
        scaler.update(false);
        assert_eq!((scaler.update(false), scaler.scale()), (ScaleChange::Raised, MAX_SCALE));
        assert!((MAX_SCALE as f32).is_normal() && (1.0 / MAX_SCALE as f32).is_normal());
    }
}
