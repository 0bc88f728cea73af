//! How often a classifier is right: accuracy and F1.
//!
//! The prediction is the class of the largest logit, the first of several such. Both figures are scikit-learn's:
//! - `accuracy`: rows predicted right / rows (`accuracy_score`);
//! - `f1`: the macro average (`f1_score(average="macro", zero_division=0)`): of `2 TP / (2 TP + FP + FN)` of each class, the plain
//!   mean over the classes that occur among the true or the predicted ones.

/// Counts per class.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Confusion {
    /// Predicted right.
    right: Vec<u64>,
    /// Predicted, rightly or not.
    predicted: Vec<u64>,
    /// Rows that are of the class.
    actual: Vec<u64>,
}

impl Confusion {
    /// Counts a row of class `actual` for which a model gave `logits`, one a class.
    ///
    /// # Panics
    /// If `actual` is no class.
    pub fn add(&mut self, logits: &[f32], actual: usize) {
        for counts in [&mut self.right, &mut self.predicted, &mut self.actual] {
            counts.resize(counts.len().max(logits.len()), 0);
        }
        let predicted =
            (1..logits.len()).fold(0, |best, class| if logits[class] > logits[best] { class } else { best });
        self.predicted[predicted] += 1;
        self.actual[actual] += 1;
        self.right[actual] += u64::from(predicted == actual);
    }

    /// Share of rows predicted right; NaN without rows.
    pub fn accuracy(&self) -> f64 {
        self.right.iter().sum::<u64>() as f64 / self.actual.iter().sum::<u64>() as f64
    }

    /// The macro average of F1; NaN without rows.
    pub fn f1(&self) -> f64 {
        let counts = self.right.iter().zip(self.predicted.iter().zip(&self.actual));
        // FP = predicted - TP, FN = actual - TP.
        let occurring: Vec<f64> = counts
            .filter(|(_, (predicted, actual))| *predicted + *actual > 0)
            .map(|(right, (predicted, actual))| (2 * right) as f64 / (predicted + actual) as f64)
            .collect();
        occurring.iter().sum::<f64>() / occurring.len() as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn confusion(num_classes: usize, actual: &[usize], predicted: &[usize]) -> Confusion {
        let mut confusion = Confusion::default();
        for (actual, predicted) in actual.iter().zip(predicted) {
            let logits: Vec<f32> = (0..num_classes).map(|class| f32::from(class == *predicted)).collect();
            confusion.add(&logits, *actual);
        }
        confusion
    }

    /// scikit-learn 1.9: `f1_score([0, 1, 2, 0, 1, 2], [0, 2, 1, 0, 0, 1], average="macro")` is 0.26666666666666666 and the
    /// accuracy 1/3.
    #[test]
    fn the_example_of_scikit_learns_manual_has_its_figures() {
        let confusion = confusion(3, &[0, 1, 2, 0, 1, 2], &[0, 2, 1, 0, 0, 1]);
        assert!((confusion.f1() - 0.266_666_666_666_666_66).abs() < 1e-15, "{}", confusion.f1());
        assert!((confusion.accuracy() - 1.0 / 3.0).abs() < 1e-15, "{}", confusion.accuracy());
    }

    /// `f1_score([0, 0, 3, 3], [0, 3, 3, 1], average="macro")`: classes 0, 1 and 3 occur, with 2/3, 0 and 1/2.
    #[test]
    fn a_class_that_is_only_predicted_counts_as_0_and_one_that_does_not_occur_does_not_count() {
        let confusion = confusion(5, &[0, 0, 3, 3], &[0, 3, 3, 1]);
        assert!((confusion.f1() - (2.0 / 3.0 + 0.0 + 0.5) / 3.0).abs() < 1e-15, "{}", confusion.f1());
    }

    #[test]
    fn equal_logits_predict_the_first_class() {
        let mut confusion = Confusion::default();
        confusion.add(&[0.5, 0.5], 0);
        assert_eq!(confusion.accuracy(), 1.0);
    }
}
