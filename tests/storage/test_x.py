def test_it(tmp_path):
    from igneous_airflow.storage.files import open_folder
    f = open_folder("mem://a/b"); assert f.read("x") is None
    import cloudvolume, tinybrain, tensorstore, tifffile, crackle
    from cloudvolume import CloudVolume
    import numpy as np
    v = CloudVolume.from_numpy(np.ones((70,70,5),np.uint8), vol_path=f"file://{tmp_path}/a", progress=False)
    v.refresh_provenance()
    print(v.provenance)
