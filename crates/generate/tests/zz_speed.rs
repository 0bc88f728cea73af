use generate::*; use models::*; 
#[test] fn speed() {
    let config = ModelConfig::from_json(&serde_json::json!({"model_type":"gpt2"}), "x");
    let mut config = config.unwrap(); config.vocab_size = Some(50257);
    for dtype in [tensor::DType::F32, tensor::DType::BF16] {
    let l = LoadedModel::from_parts(config.clone(), None, Default::default(), |_| Ok(models::weights::WeightSource::Random{seed:1}), LoadOptions{dtype: Some(dtype), threads:2, ..Default::default()}).unwrap();
    let prompt: Vec<u32> = (0..512).collect();
    let mut o = l.generate_options(512); o.max_new_tokens = 40; o.sampling.top_p = 0.9; o.eos = vec![];
    let t = std::time::Instant::now(); let mut g = Generator::new(l.forward(), &prompt, o).unwrap();
    g.next(); let prefill = t.elapsed().as_secs_f64(); let t = std::time::Instant::now(); let n = g.by_ref().count();
    println!("SPEED {dtype} prefill {:.0} tok/s, decode {:.2} tok/s", 512.0/prefill, n as f64 / t.elapsed().as_secs_f64());
    let mut logits: Vec<f32> = (0..50257).map(|i| ((i * 7919) % 50257) as f32 * 1e-4).collect(); let s = Sampling{top_p:0.9, ..Default::default()};
    let t = std::time::Instant::now(); for _ in 0..10 { let mut l2 = logits.clone(); s.choose(&mut l2, &[], 0.5); } println!("SPEED top_p choose {:.2} ms", t.elapsed().as_secs_f64()*100.0); logits.clear();
    }
}
